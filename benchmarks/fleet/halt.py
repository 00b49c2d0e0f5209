"""How far a bad bundle comes: ``python -m benchmarks.fleet.halt [--devices 1000] [--in-time 10000]``.

``edge-fleet serve`` with SQLite and mosquitto, each a process of its own, and simulated devices in another one
(one connection each). A bundle that fails on the device is rolled out to all of them
with the waves of the defaults; told is how long after the first device reported it the rollout has halted, and how many
devices had been asked for the bundle by then. Then the same in simulated time, with the same decisions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fleet.gateway import processor
from fleet.store import audit
from fleet.store.database import Database, parse_database
from tests.broker import Broker
from tests.fleet.simulate.device import Behaviour, SimulatedDevice
from tests.fleet.simulate.in_time import FleetInTime
from tests.fleet.simulate.links import living
from tests.fleet.stage import load, start, wait_for_state
from tests.fleet.waiting import until

BAD = "model@3.0.0"
BUNDLES = {BAD: Behaviour(fails="CANARY")}
SECONDS = 600.0


class Watched(SimulatedDevice):
    """Notes when it failed first, and when it was asked."""

    failed_at: float | None = None
    asked_at: float | None = None

    def wish(self, payload: bytes, now: float) -> list[Any]:
        if BAD.partition("@")[2].encode() in payload and self.asked_at is None:
            self.asked_at = now
        return super().wish(payload, now)

    def _fail(self, reason: str, message: str, at: float) -> list[Any]:
        self.failed_at = self.failed_at or time.time()
        return super()._fail(reason, message, at)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--in-time", type=int, default=10_000, metavar="N")
    arguments = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        found = over_a_broker(Path(directory), arguments.devices)
    print(f"{arguments.devices:,} devices over {found.pop('broker')}: {json.dumps(found)}")
    found = in_time(arguments.in_time)
    print(f"{arguments.in_time:,} devices in simulated time: {json.dumps(found)}")
    return 0


def over_a_broker(directory: Path, count: int) -> dict[str, Any]:
    """Seconds from the first failure to the halt, and how many were asked by then."""
    broker = Broker(directory / "broker")
    broker.start()
    url = f"sqlite:///{directory}/fleet.db"
    database = Database(parse_database(url))
    database.create()
    words = [sys.executable, "-m", "fleet.cli", "serve", "--database", url, "--broker", broker.url]
    devices = [Watched(f"sim-{number}", pace=1.0, requests_per_second=5.0, bundles=BUNDLES) for number in range(count)]
    service = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=(directory / "log").open("wb"))
    try:
        with living(devices, broker.address, telemetry=10.0):
            until(lambda: online(database) == count, f"{count} devices to be known", SECONDS)
            number = start(database, "3.0.0", bake="30m", waves=["1", "1%", "10%", "50%", "100%"])
            found = wait_for_state(database, number, "rolled_back")
            with database.read() as connection:
                lines = audit.entries(connection, subject=f"rollout {number}")
            halted_at = next(each.at for each in lines if each.action == "rollout.rolling_back")
        failed_at = min(each.failed_at for each in devices if each.failed_at is not None)
        return {
            "broker": broker.kind,
            "seconds from the first failure to the halt": round(halted_at - failed_at, 2),
            "devices that were asked": sum(each.asked_at is not None for each in devices),
            "devices of the first wave": sum(target.wave == 1 for target in found.targets.values()),
            "turned back": sum(target.state == "rolled_back" for target in load(database, number).targets.values()),
            "load": round(os.getloadavg()[0], 1),
        }
    finally:
        service.terminate()
        service.wait(60)
        database.close()
        broker.stop()


def online(database: Database) -> int:
    from fleet.store import devices

    with database.read() as connection:
        return sum(each.online and bool(each.bundle) for each in devices.traits(connection))


def in_time(count: int) -> dict[str, Any]:
    """The same decisions, of more devices than this machine could connect."""
    begun = time.process_time()
    made = FleetInTime(count, bundles=BUNDLES, telemetry=3600.0, interval=1.0, sites=40)
    made.pass_time(3600.0)
    made.start("3.0.0")
    halted_at: list[float] = []
    made.look = lambda rollout: halted_at.append(made.now) if rollout.state == "rolling_back" else None
    found = made.run()
    assert made.failed_at is not None
    assert found.state == "rolled_back", found.reason
    return {
        "simulated seconds from the first failure to the halt": round(halted_at[0] - made.failed_at, 2),
        "devices that were asked": len(set(made.asked)),
        "devices of the first wave": sum(target.wave == 1 for target in found.targets.values()),
        "processor seconds that took": round(time.process_time() - begun, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
