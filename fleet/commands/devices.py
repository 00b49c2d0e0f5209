"""``edge-fleet devices``: the registry, or a selection of it."""

from __future__ import annotations

import argparse

from msgspec import structs

from fleet.commands.context import add_database, opened, print_json, print_table, when
from fleet.describe import describe_device, state_of
from fleet.rollout.selector import parse_selector
from fleet.store import devices
from fleet.store.devices import DeviceRow


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    add_database(parser)
    parser.add_argument("--where", default="*", metavar="SELECTION", help="those that match; default * for every one")
    parser.epilog = (
        "A selection compares device, site, hardware, arch, agent, bundle, group, online, pinned and label.NAME\n"
        "(=, !=, ~ for a pattern, in (…)), cores and ram (also <, <=, >, >=), joined by and, or, not and brackets.\n\n"
        "examples:\n"
        "  edge-fleet devices\n"
        "  edge-fleet devices --where 'site=oslo and ram>=4G'\n"
        "  edge-fleet devices --where 'bundle=smollm2@1.0.0 and not (group=lab or label.rack in (3, 4))' --json"
    )


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    selector = parse_selector(arguments.where)
    with opened(arguments) as database, database.read() as connection:
        every = devices.rows(connection)
    found = [row for row in every if selector.matches(row.traits)]
    if arguments.json:
        print_json({"devices": [structs.asdict(describe_device(row)) for row in found], "known": len(every)})
        return 0
    if found:
        head = ["DEVICE", "STATE", "BUNDLE", "SITE", "HARDWARE", "LAST SEEN", "TROUBLE"]
        print_table(head, [_line(row) for row in found])
    print(f"{len(found)} of {len(every)} devices, {sum(row.traits.online for row in found)} online")
    return 0


def _line(row: DeviceRow) -> list[str]:
    traits = row.traits
    pinned = " (pinned)" if traits.pinned else ""
    state = state_of(row) + pinned
    return [traits.device, state, traits.bundle, traits.site, traits.hardware, when(row.seen_at), row.trouble]
