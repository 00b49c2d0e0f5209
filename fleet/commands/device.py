"""``edge-fleet device``: one device, and what an operator says of it."""

from __future__ import annotations

import argparse
import time
from typing import Any

import msgspec

from contract.errors import printable
from fleet import operations
from fleet.commands.context import add_database, opened, operator, print_json, print_table, when
from fleet.describe import describe_device_wholly, state_of
from fleet.operations import Actor
from fleet.store import devices, rollouts
from fleet.store.devices import DeviceRow


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.add_argument("device", metavar="DEVICE", help="its name")
    add_database(parser)
    parser.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE",
        help="say something of it; site is where it stands, an empty value takes a label away; may be repeated",
    )  # fmt: skip
    pin = parser.add_mutually_exclusive_group()
    pin.add_argument("--pin", action="store_true", help="rollouts leave it alone")
    pin.add_argument("--unpin", action="store_true", help="rollouts may have it again")
    parser.add_argument("--clear-trouble", action="store_true", help="rely again on what it says")
    parser.epilog = (
        "examples:\n"
        "  edge-fleet device kitchen-1\n"
        "  edge-fleet device kitchen-1 --label site=oslo --label rack=3\n"
        "  edge-fleet device kitchen-1 --pin"
    )


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    labels = _read_labels(arguments.label)
    pinned = True if arguments.pin else False if arguments.unpin else None
    with opened(arguments) as database:
        if labels or pinned is not None or arguments.clear_trouble:
            with database.write() as connection:
                operations.change_device(
                    connection, arguments.device, Actor(operator()), time.time(),
                    labels=labels, pinned=pinned, clear_trouble=arguments.clear_trouble,
                )  # fmt: skip
        with database.read() as connection:
            row = devices.find(connection, arguments.device)
            attempts = rollouts.attempts(connection, arguments.device)
            events = devices.events(connection, arguments.device)
    if arguments.json:
        print_json(msgspec.to_builtins(describe_device_wholly(row, attempts, events)))
    else:
        _show(row, attempts)
    return 0


def _read_labels(texts: list[str]) -> dict[str, str] | None:
    found = (operations.check_label(text).partition("=") for text in texts)
    return {name: value for name, _, value in found} or None


def _show(row: DeviceRow, attempts: list[dict[str, Any]]) -> None:
    traits, reported = row.traits, row.reported
    error = None if reported is None else reported.error
    lines = {
        "state": state_of(row) + (", pinned" if traits.pinned else ""),
        "bundle": traits.bundle or "none",
        "does": "nothing was heard" if reported is None else reported.phase.lower(),
        "error": "" if error is None else f"{error.message} [{error.reason}]",
        "wish": row.desired or "none",
        "site": traits.site,
        "labels": ", ".join(f"{name}={value}" for name, value in sorted(traits.labels.items())),
        "hardware": traits.hardware,
        "groups": ", ".join(traits.groups),
        "agent": traits.agent,
        "last seen": when(row.seen_at),
        "trouble": row.trouble,
    }
    print(traits.device)
    for name, value in lines.items():
        if value:
            print(f"  {name:<10} {printable(value)}")
    if attempts:
        print()
        rows = [
            [f"{each['rollout']}", f"{each['number']}", when(each["asked_at"]), each["state"], each["reason"]]
            for each in attempts
        ]
        print_table(["ROLLOUT", "ATTEMPT", "ASKED", "STATE", "REASON"], rows)
