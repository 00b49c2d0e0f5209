"""``edge-agent bundles``: every bundle that lies on this device or failed here."""

from __future__ import annotations

import argparse

import msgspec

from agent.commands.context import add_context_options, existing_context
from agent.commands.status import show_bundles
from agent.install.status import bundle_statuses
from agent.state.installation import InstallationState
from agent.state.opening import open_to_read


def configure(parser: argparse.ArgumentParser) -> None:
    add_context_options(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = "examples:\n  edge-agent bundles --config /etc/edge-agent/agent.toml\n  edge-agent bundles --json"


def run(arguments: argparse.Namespace) -> int:
    context = existing_context(arguments)
    database = open_to_read(context.directory)
    try:
        lines = bundle_statuses(InstallationState(database), context.directory)
    finally:
        database.close()
    if arguments.json:
        print(msgspec.json.encode(lines).decode())
    else:
        show_bundles(lines)
    return 0
