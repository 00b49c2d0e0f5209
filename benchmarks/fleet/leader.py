"""``python -m benchmarks.fleet.leader``: how long a fleet on PostgreSQL has no leader after ``kill -9`` of its own.

Three controllers in processes of their own; the one that leads is killed, and the next one's first transaction (the
higher epoch) is waited for, ``--kills`` times; whoever was killed is replaced by another that waits. Beside it how long
PostgreSQL itself takes to give the lock to a session that waits for it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import psycopg
from sqlalchemy import select

from benchmarks.fleet.pages import processor
from fleet.store.database import Database, parse_database
from fleet.store.schema import leader
from tests.broker import Broker
from tests.fleet.crash.controller import Controller, Place
from tests.fleet.waiting import until
from tests.postgres import Postgres

CONTROLLERS = 3
LONGEST_SECONDS = 60.0


class Fleet:
    """Controllers of which one leads."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._database = Database(parse_database(place.database))
        self._database.create()
        self._controllers = [self._start() for _ in range(CONTROLLERS)]
        until(lambda: self.epoch, "one to lead")

    def _start(self) -> Controller:
        made = Controller(self._place, ("controller",))
        made.start()
        return made

    @property
    def epoch(self) -> int:
        with self._database.read() as connection:
            return int(connection.execute(select(leader.c.epoch).where(leader.c.id == 1)).scalar() or 0)

    @property
    def _holder(self) -> int:
        """The process of the leader."""
        with self._database.read() as connection:
            holder = connection.execute(select(leader.c.holder).where(leader.c.id == 1)).scalar_one()
        return int(holder.rpartition(":")[2])

    def kill_leader(self) -> float:
        """Seconds until another one leads."""
        (found,) = [each for each in self._controllers if each.pid == self._holder]
        epoch = self.epoch
        began = time.monotonic()
        found.kill()
        while self.epoch == epoch:
            if time.monotonic() > began + LONGEST_SECONDS:
                raise RuntimeError(f"nobody leads {LONGEST_SECONDS:.0f} s after the leader was killed")
            time.sleep(0.002)
        taken = time.monotonic() - began
        self._controllers.remove(found)
        self._controllers.append(self._start())
        return taken

    def end(self) -> None:
        for each in self._controllers:
            each.end()
        self._database.close()


def lock_alone(url: str) -> float:
    """Seconds until PostgreSQL gives an advisory lock on, whose session's connection was cut."""
    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as one, psycopg.connect(plain, autocommit=True) as two:
        one.execute("SELECT pg_advisory_lock(1)")
        began = time.monotonic()
        os.close(one.fileno())
        two.execute("SELECT pg_advisory_lock(1)")
        return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.leader", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        broker, postgres = Broker(Path(directory) / "broker"), Postgres()
        broker.start()
        postgres.start()
        try:
            url = postgres.create("leaders")
            fleet = Fleet(Place(url, broker.url, "edge/leaders"))
            taken = sorted(fleet.kill_leader() for _ in range(arguments.kills))
            fleet.end()
            alone = sorted(lock_alone(url) for _ in range(arguments.kills))
        finally:
            broker.stop()
            postgres.remove()
    load = os.getloadavg()[0]
    print(f"{arguments.kills} kills of the leader of {CONTROLLERS} controllers, {processor()}; load {load:.1f}")
    for name, each in (("next leader's first commit", taken), ("PostgreSQL gives the lock on", alone)):
        print(f"  {name:<30} median {statistics.median(each):.3f} s, longest {each[-1]:.3f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
