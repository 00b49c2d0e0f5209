"""``edge-agent check-config``: say whether a configuration file is right, without starting anything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from agent.config import load_config


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the TOML file")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.epilog = (
        "Exit status 0 when the file is right, 78 when it is not.\n\n"
        "examples:\n"
        "  edge-agent check-config /etc/edge-agent/agent.toml\n"
        "  edge-agent check-config agent.toml --json"
    )


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.file)
    if arguments.json:
        print(json.dumps({"ok": True, "device": config.device, "broker": config.broker.address}))
    else:
        print(f"{arguments.file} is right: device {config.device}, broker {config.broker.address}")
    return 0
