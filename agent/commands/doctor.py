"""``edge-agent doctor``: one page, every check with ✓ or ✗ and the mend."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.commands.context import DEFAULT_CONFIG
from agent.diagnosis.checks import run_all_checks
from agent.diagnosis.finding import SIGNS, Finding

EXAMPLES = """examples:
  sudo edge-agent doctor
  sudo edge-agent doctor --config agent.toml --json
  sudo edge-agent doctor --reset-clock-floor       after a clock far in the future was believed; stop the agent first

It changes nothing, may run beside the agent, and sends one message to itself through the broker.
✓ good   ✗ bad, with the fix below   ! a warning: prompts are answered all the same   · worth knowing
It is bad that prompts are not answered, for whatever reason.
exit status: 0 nothing is bad, 1 something is
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="configuration file")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--reset-clock-floor", action="store_true", help="forget the latest time seen signed")


def run(arguments: argparse.Namespace) -> int:
    if arguments.reset_clock_floor:
        return _reset(arguments.config)
    # What the checks run into stands on the page, not in a log.
    logging.getLogger("edge_agent").addHandler(logging.NullHandler())
    findings: list[Finding] = []
    for finding in run_all_checks(arguments.config):
        findings.append(finding)
        if not arguments.json:
            _print(finding)
    bad = sum(finding.verdict == "bad" for finding in findings)
    if arguments.json:
        print(json.dumps({"ok": not bad, "findings": msgspec.to_builtins(findings)}))
    else:
        print(f"\n{summary(findings)}")
    return 1 if bad else 0


def summary(findings: Sequence[Finding]) -> str:
    """The last line of the page."""
    bad, warnings = (sum(each.verdict == verdict for each in findings) for verdict in ("bad", "warning"))
    counts = f"{warnings} warning{'s' if warnings > 1 else ''}; " if warnings else ""
    if bad:
        return f"{counts}{bad} of {len(findings)} checks are bad"
    return f"{counts}none of {len(findings)} checks is bad" if counts else f"all {len(findings)} checks passed"


def _print(finding: Finding) -> None:
    print(f"{SIGNS[finding.verdict]} {finding.check:<14} {finding.detail}")
    if finding.fix:
        print(f"{'':<16} → {finding.fix}")
    sys.stdout.flush()


def _reset(config_path: Path) -> int:
    from agent.config import load_config
    from agent.diagnosis.state import reset_clock_floor
    from agent.state.layout import StateDirectory

    reset_clock_floor(StateDirectory(load_config(config_path).state_dir))
    print("the clock floor is forgotten; the next signed metadata sets it again")
    return 0
