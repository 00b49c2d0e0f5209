"""``edge-fleet audit``: who did what."""

from __future__ import annotations

import argparse
import json

from fleet.commands.context import add_database, opened, print_json, print_table, when
from fleet.store import audit


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    add_database(parser)
    parser.add_argument("--last", type=int, default=50, metavar="N", help="the last N lines; default 50, 0 for all")
    parser.add_argument("--subject", metavar="WHAT", help="only about this, such as 'rollout 12' or a device")
    parser.add_argument("--verify", action="store_true", help="see that no line was changed or taken out")
    parser.epilog = (
        "examples:\n"
        "  edge-fleet audit --subject 'rollout 12'\n"
        "  edge-fleet audit --verify\n\n"
        "exit status: 0 done, 2 the command line, 4 no database, 5 the log is not as it was written, 78 configuration"
    )


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    with opened(arguments) as database, database.read() as connection:
        if arguments.verify:
            count = audit.verify(connection)
            print_json({"lines": count, "whole": True}) if arguments.json else print(
                f"{count} lines, the chain is whole"
            )
            return 0
        found = audit.entries(connection, limit=max(0, arguments.last) or None, subject=arguments.subject)
    if arguments.json:
        for each in found:
            print_json(each._asdict())
        return 0
    rows = [
        [f"{each.id}", when(each.at), each.actor, each.action, each.subject, _detail(each.detail)] for each in found
    ]
    print_table(["LINE", "WHEN", "WHO", "WHAT", "OF", "DETAIL"], rows)
    return 0


def _detail(detail: dict[str, object]) -> str:
    said = {name: value for name, value in detail.items() if value not in ("", None)}
    return ", ".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in said.items()
    )
