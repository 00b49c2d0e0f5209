"""``edge-fleet serve``: the service."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from typing import cast

from contract.errors import UsageError
from contract.mqtt.topics import Topics
from contract.schema_faults import nearest
from edge_bundle.broker import add_broker, find_broker
from fleet.commands.context import add_database, find_database
from fleet.service import ROLES, Role, Service


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    add_database(parser)
    add_broker(parser)
    parser.add_argument(
        "--roles", default=",".join(ROLES), metavar="ROLE,…", help=f"what this process does; default {','.join(ROLES)}"
    )
    parser.epilog = (
        "It needs nothing but a broker: a database that is not there is made. Whatever is away is waited for. On\n"
        "PostgreSQL any number of processes may serve: one of them decides, and another one does when it is gone.\n"
        "SIGTERM or Ctrl-C ends it; devices finish what they were asked for.\n\n"
        "examples:\n"
        "  edge-fleet serve --broker mqtts://fleet@broker.example.org\n"
        "  edge-fleet serve --database postgresql://fleet@db.example.org/fleet --roles ingest"
    )


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    roles = read_roles(arguments.roles)
    address = find_broker(arguments)
    Topics("any", arguments.topic_root)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    database = find_database(arguments)
    try:
        database.create()
        service = Service(database, address, arguments.topic_root, roles)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        print(f"edge-fleet serves {', '.join(roles)} on {address.name} with {database.name}", flush=True)
        service.run()
    finally:
        database.close()
    return 0


def read_roles(text: str) -> list[Role]:
    """The roles that are named.

    Raises:
        UsageError: one is none.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if part not in ROLES:
            near = nearest(part, list(ROLES))
            hint = "" if near is None else f"; did you mean {near}?"
            raise UsageError(f"{part!r} is no role; roles are {', '.join(ROLES)}{hint}")
    if not found:
        raise UsageError(f"name a role at least: {', '.join(ROLES)}")
    return cast(list[Role], found)
