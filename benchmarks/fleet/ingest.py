"""How many devices ingest holds: ``python -m benchmarks.fleet.ingest [--devices 1000] [--interval 1] [--seconds 60]``.

Simulated devices, each with a connection of its own, send both samples every ``--interval`` seconds over mosquitto to
``edge-fleet serve --roles ingest`` with SQLite, a process of its own. Told are the samples that were sent, that were
heard, that were left out (which the service counts and logs), that the broker or the line lost, and those that are in
the database in the end; and the processor time of the service for each, from which follows how many devices that
report every ten seconds one core holds. 1,000 devices at one second are the messages of 10,000 at ten.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

import fleet.service
from benchmarks.fleet.gateway import processor
from edge_bundle.broker import parse_broker
from fleet.ingest.inbox import Batch, Inbox
from fleet.store.database import Database, parse_database
from fleet.store.schema import sample_last
from tests.broker import Broker
from tests.fleet.simulate.device import SimulatedDevice
from tests.fleet.simulate.links import living
from tests.fleet.waiting import until

ROOT = "edge/v1"
SETTLE_SECONDS = 60.0

REPORTING_SECONDS = 10.0
"""Between two samples of a device as it is shipped."""


class Counting(Inbox):
    """Counts what comes in, and what is left out."""

    heard = 0
    left_out = 0

    def put(self, topic: str, payload: bytes, *, retained: bool, now: float) -> None:
        Counting.heard += topic.endswith("/telemetry/llm")
        super().put(topic, payload, retained=retained, now=now)

    def take(self) -> Batch:
        batch = super().take()
        Counting.left_out += batch.dropped
        return batch


def serve(url: str, broker: str) -> int:
    """The service, with counts and processor seconds as a line of JSON for every line of input."""
    fleet.service.Inbox = Counting  # type: ignore[misc]
    database = Database(parse_database(url))
    service = fleet.service.Service(database, parse_broker(broker), ROOT, ("ingest",))
    thread = threading.Thread(target=service.run)
    thread.start()
    for _ in sys.stdin:
        counts = {
            "ready": service._session is not None, "heard": Counting.heard, "left_out": Counting.left_out,
            "cpu": time.process_time(),
        }  # fmt: skip
        print(json.dumps(counts), flush=True)
    service.stop()
    thread.join()
    database.close()
    return 0


class Process:
    """The service as a process."""

    def __init__(self, url: str, broker: Broker) -> None:
        command = [sys.executable, "-m", "benchmarks.fleet.ingest", "--serve", url, broker.url]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def counts(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)


def measure(directory: Path, count: int, interval: float, seconds: float) -> dict[str, Any]:
    """Counts of samples, and processor seconds of the service."""
    broker = Broker(directory / "broker")
    broker.start()
    url = f"sqlite:///{directory}/fleet.db"
    database = Database(parse_database(url))
    database.create()
    process = Process(url, broker)
    devices = [SimulatedDevice(f"sim-{number}", requests_per_second=5.0) for number in range(count)]
    try:
        until(lambda: process.counts()["ready"], "the service to listen")
        with living(devices, broker.address, telemetry=interval) as links:
            until(lambda: in_registry(database) == count, f"{count} devices to be known", 600)
            sent, before, begun = sum(link.sent for link in links), process.counts(), time.monotonic()
            # How long it is measured decides nothing; what is in flight at both ends is a second's worth.
            while time.monotonic() < begun + seconds:
                time.sleep(0.5)
            between, after = sum(link.sent for link in links), process.counts()
        # All devices are gone, and what they sent is on its way: until it is written, or nothing more comes.
        total = sum(link.sent for link in links)
        end = time.monotonic() + SETTLE_SECONDS
        while up_to_date(database, devices) < count and time.monotonic() < end:
            time.sleep(1.0)
        heard = process.counts()["heard"]
        samples = after["heard"] - before["heard"]
        cpu = after["cpu"] - before["cpu"]
        return {
            "sent": total,
            "heard": heard,
            "left out": process.counts()["left_out"],
            "lost on the way": total - heard,
            "devices with the last sample in the database": up_to_date(database, devices),
            "samples a second": round((between - sent) / (time.monotonic() - begun) if seconds else 0, 1),
            "processor ms a sample": round(1000 * cpu / max(samples, 1), 3),
            "share of a core": round(cpu / seconds, 3),
            "devices a core at 10 s": round(REPORTING_SECONDS * samples / cpu),
            "load": round(os.getloadavg()[0], 1),
        }
    finally:
        process.end()
        database.close()
        broker.stop()


def in_registry(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(sample_last)).scalar_one())


def up_to_date(database: Database, devices: list[SimulatedDevice]) -> int:
    """Whose counters in the database are those that the device sent last."""
    with database.read() as connection:
        raw = {row.device: json.loads(row.raw)["requests"] for row in connection.execute(select(sample_last))}
    return sum(raw.get(each.name) == sum(each.work.meter.requests.values()) for each in devices)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("DATABASE", "BROKER"), help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        return serve(*arguments.serve)
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), arguments.devices, arguments.interval, arguments.seconds)
    print(f"{arguments.devices:,} devices, a sample of each every {arguments.interval:g} s, {arguments.seconds:g} s:")
    for name, value in found.items():
        print(f"  {name:<45} {value:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
