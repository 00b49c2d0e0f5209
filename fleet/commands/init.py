"""``edge-fleet init``: make the database."""

from __future__ import annotations

import argparse
import time

from fleet.commands.context import add_database, find_database, operator, print_json
from fleet.store import audit


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    add_database(parser)
    parser.epilog = (
        "What is there already is left as it is.\n\n"
        "examples:\n"
        "  edge-fleet init\n"
        "  edge-fleet init --database sqlite:////var/lib/edge-fleet/fleet.db\n"
        "  edge-fleet init --database postgresql://fleet@db.example.org/fleet   # password: PGPASSWORD or ~/.pgpass"
    )


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    database = find_database(arguments)
    try:
        made = database.create()
        if made:
            with database.write() as connection:
                audit.record(connection, at=time.time(), actor=operator(), action="init", subject="database")
    finally:
        database.close()
    if arguments.json:
        print_json({"database": database.name, "made": made})
    else:
        print(f"{'made' if made else 'it is there already:'} {database.name}")
    return 0
