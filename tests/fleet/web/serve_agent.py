"""``python -m tests.fleet.web.serve_agent``: a real agent with a real (tiny) model, a fleet that hears it, and its
console with the playground, until standard input ends. It prints its address as a line of JSON once the device answers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from edge_bundle.broker import parse_broker
from fleet.access.roles import Role
from fleet.http.app import make_app
from fleet.http.server import Server, listen
from fleet.store import devices
from fleet.store.database import Database, parse_database
from fleet.web.app import Console
from fleet.web.settings import Settings
from tests.agent.telemetry.running import running_agent, scrape_until_ready
from tests.crash.__main__ import default_bundle
from tests.fleet.stage import serving
from tests.fleet.waiting import until
from tests.fleet.web.stage import PASSWORD, add_account

SECONDS = 300.0


def main() -> int:
    bundle = default_bundle()
    with tempfile.TemporaryDirectory() as directory:
        database = Database(parse_database(f"sqlite:///{Path(directory) / 'fleet.db'}"))
        database.create()
        add_account(database, "eva", Role.PROMPTER)
        with running_agent(Path(directory), bundle) as (broker, page), serving(database, broker.address):
            scrape_until_ready(page, seconds=SECONDS)
            until(lambda: is_known(database), "the device to be known", SECONDS)
            server = Server(
                make_app([Console(Settings(database=database, broker=parse_broker(broker.url)))]),
                listen("127.0.0.1", 0),
            )
            server.start()
            print(json.dumps({"url": server.url, "password": PASSWORD, "device": "box.7"}), flush=True)
            sys.stdin.read()
            server.stop()
        database.close()
    return 0


def is_known(database: Database) -> bool:
    with database.read() as connection:
        return any(each.online and each.bundle for each in devices.traits(connection))


if __name__ == "__main__":
    sys.exit(main())
