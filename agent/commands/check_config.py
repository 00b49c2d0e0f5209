"""``edge-agent check-config``: say whether a configuration file is right, without starting anything."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from agent.config import load_config
from contract.errors import ConfigInvalid, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the TOML file")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.epilog = (
        "Every fault is listed. Exit status 0 when the file is right, 78 when it is not.\n\n"
        "examples:\n"
        "  edge-agent check-config /etc/edge-agent/agent.toml\n"
        "  edge-agent check-config agent.toml --json"
    )


def run(arguments: argparse.Namespace) -> int:
    try:
        config = load_config(arguments.file)
    except ConfigInvalid as error:
        _print_faults(arguments.file, error, as_json=arguments.json)
        return error.exit_status
    if arguments.json:
        print(json.dumps({"ok": True, "device": config.device, "broker": config.broker.address}))
    else:
        print(f"{arguments.file} is right: device {config.device}, broker {config.broker.address}")
    return 0


def _print_faults(file: Path, error: ConfigInvalid, *, as_json: bool) -> None:
    """Every fault on a line of its own, where an editor finds it: ``FILE:LINE: what is wrong``."""
    if as_json:
        faults = [{"field": each.field, "line": each.line, "message": each.message} for each in error.faults]
        body = {"message": error.message, "field": error.field, "faults": faults}
        print(json.dumps({"ok": False, "error": {key: value for key, value in body.items() if value is not None}}))
    for each in error.faults:
        # What is wrong with the file as a whole names it already.
        where = "edge-agent" if each.field is None else f"{file}:{each.line}" if each.line else f"{file}"
        print(f"{printable(where)}: {each.message}", file=sys.stderr)
