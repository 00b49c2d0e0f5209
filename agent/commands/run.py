"""``edge-agent run``: serve prompts and follow the desired bundle until told to stop."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.commands.context import DEFAULT_CONFIG
from agent.config import load_config
from agent.systemd.journal import open_log


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="configuration file")
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default info"
    )
    parser.epilog = (
        "SIGTERM and SIGINT end it in order: running answers finish or are kept for the next start.\n"
        "Exit status 78: the configuration is wrong, restarting does not help.\n\n"
        "examples:\n"
        "  edge-agent run --config /etc/edge-agent/agent.toml\n"
        "  edge-agent run --config agent.toml --log-level debug"
    )


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    open_log(arguments.log_level)
    # Imported here: a wrong configuration is said at once, and check-config needs none of it.
    from agent.app import run_service

    run_service(config)
    return 0
