"""``python -m tests.fleet.web.serve_story``: a fleet to look at and its console, until standard input ends.

It prints its address as a line of JSON; a number on its input lets so many minutes pass. ``--devices N`` adds devices
that are known and quiet.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from contract.mqtt.encoding import encode
from fleet.http.app import make_app
from fleet.http.server import Server, listen
from fleet.store import devices
from fleet.store.database import Database, parse_database
from fleet.web.app import Console
from fleet.web.oidc_file import read_oidc
from fleet.web.settings import Settings
from tests.fleet.web.fleet_in_time import tell_a_story
from tests.fleet.web.stage import PASSWORD


def add_quiet(database: Database, count: int) -> None:
    """Devices that said who they are, as the first ones of the story did."""
    with database.read() as connection:
        said = devices.rows(connection)
    with database.write() as connection:
        for begin in range(0, count, 2000):
            updates = []
            for number in range(begin, min(begin + 2000, count)):
                like = said[number % len(said)]
                documents = {name: encode(getattr(like, name)).decode() for name in ("info", "health", "reported")}
                updates.append(
                    devices.DeviceUpdate(
                        device=f"quiet-{number:05d}", at=1.0, online=number % 7 > 0, seen_at=time.time(), **documents
                    )
                )
            devices.take(connection, updates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=0, metavar="N")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--oidc", type=Path, metavar="FILE", help="an OpenID provider to sign in with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        database = Database(parse_database(f"sqlite:///{Path(directory) / 'fleet.db'}"))
        database.create()
        fleet = tell_a_story(database, end=time.time())
        shift = time.time() - fleet.now
        if arguments.devices:
            add_quiet(database, arguments.devices)
        settings = Settings(
            database=database,
            clock=lambda: time.time() - shift,
            oidc=None if arguments.oidc is None else read_oidc(arguments.oidc),
        )
        server = Server(make_app([Console(settings)]), listen("127.0.0.1", arguments.port))
        server.start()
        print(json.dumps({"url": server.url, "password": PASSWORD, "device": fleet.devices[0].name}), flush=True)
        for line in sys.stdin:
            # The story goes on by so many minutes.
            fleet.pass_time(float(line))
            shift = time.time() - fleet.now
            print(json.dumps({"now": fleet.now}), flush=True)
        server.stop()
        fleet.close()
        database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
