"""``edge-agent report``: one file for whoever helps from afar."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from agent.commands.context import DEFAULT_CONFIG
from agent.diagnosis.checks import run_all_checks
from agent.diagnosis.support import write_report

EXAMPLES = """examples:
  sudo edge-agent report report.tar.gz
  edge-agent report report.tar.gz --config agent.toml --json

In it: the doctor's page, versions, configuration (no passwords, no keys), bundles, audit log, the service's log.
Not in it: prompts, answers, credentials, state.db. Look before you send it: tar xzf report.tar.gz
exit status: 0 written, 5 the disk
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("file", type=Path, metavar="FILE", help="the .tar.gz to write")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="configuration file")
    parser.add_argument("--json", action="store_true", help="print what is in it as JSON")


def run(arguments: argparse.Namespace) -> int:
    # What the checks run into is in the report.
    logging.getLogger("edge_agent").addHandler(logging.NullHandler())
    names = write_report(arguments.file, arguments.config, run_all_checks(arguments.config))
    if arguments.json:
        print(json.dumps({"file": str(arguments.file), "members": names}))
    else:
        print(f"{arguments.file}: {', '.join(names)}; no prompts, answers or secrets")
    return 0
