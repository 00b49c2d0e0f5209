"""``edge-agent rollback``: back to the bundle that was active before, verified and tried like any other."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os

from agent.commands.context import CliContext, act_as_owner, add_context_options, existing_context
from agent.commands.install import ProgressPrinter
from agent.install.desired import Rollback, rollback_target
from agent.install.offline import install_offline
from agent.install.status import InstallStatus
from agent.operator.control import Order, call_agent, check_may_lower_epoch, raise_for
from agent.state.installation import InstallationState
from agent.state.opening import open_to_read


def configure(parser: argparse.ArgumentParser) -> None:
    add_context_options(parser)
    parser.add_argument(
        "--allow-epoch",
        action="store_true",
        help="go back even to a bundle that was revoked or lies below the security epoch (root only)",
    )
    parser.add_argument("--json", action="store_true", help="print phases and outcome as JSON lines")
    parser.epilog = (
        "A desired document that is there already is not followed any more; the next one is.\n\n"
        "examples:\n"
        "  edge-agent rollback --config /etc/edge-agent/agent.toml\n"
        "  sudo edge-agent rollback --allow-epoch"
    )


def run(arguments: argparse.Namespace) -> int:
    context = existing_context(arguments)
    order = Order(op="rollback", allow_epoch=arguments.allow_epoch)
    # How it goes is told below, and how it ends; the log is for those who read a service's.
    logging.getLogger("edge_agent").addHandler(logging.NullHandler())
    printer = ProgressPrinter(as_json=arguments.json)
    try:
        overview = call_agent(context.directory, order, printer.show)
        active = rollback_offline(context, order, printer) if overview is None else _active(overview)
    finally:
        printer.finish()
    print(json.dumps({"ok": True, "active": active}) if arguments.json else f"{active} is active")
    return 0


def rollback_offline(context: CliContext, order: Order, printer: ProgressPrinter) -> str:
    """Do it where no agent runs; what is active then."""
    check_may_lower_epoch(order, os.geteuid())
    act_as_owner(context.directory)
    target = _read_target(context, order)
    raise_for(asyncio.run(install_offline(context.directory, target, context.worker, printer.show)))
    return target.reference


def _read_target(context: CliContext, order: Order) -> Rollback:
    database = open_to_read(context.directory)
    try:
        return rollback_target(InstallationState(database), context.install, allow_epoch=order.allow_epoch)
    finally:
        database.close()


def _active(overview: InstallStatus) -> str:
    active = overview.reported.active
    return "nothing" if active is None else f"{active.name}@{active.version}"
