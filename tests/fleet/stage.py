"""A whole fleet in one process: broker, simulated devices, and the service in a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edge_bundle.broker import BrokerAddress
from fleet.rollout.model import Bundle, Rollout
from fleet.rollout.plan import draft
from fleet.rollout.spec import read_spec
from fleet.service import Service
from fleet.store import devices, outbox, rollouts
from fleet.store.database import Database
from tests.fleet.simulate.device import Behaviour, SimulatedDevice, digest_of
from tests.fleet.waiting import until

ROOT = "edge/v1"
BUNDLES: Mapping[str, Behaviour] = {
    "model@3.0.0": Behaviour(fails="CANARY"),
    "model@4.0.0": Behaviour(speed=0.4),
}
BASELINE = 50
"""Requests of a device before a rollout begins; gates need 20."""

ROLLOUT_SECONDS = 240.0
"""For one whose brokers elect anew on a busy machine; others take five."""

QUICK: dict[str, Any] = {"where": "*", "bake": "1s", "deadline": "60s"}


def make_devices(count: int, **values: Any) -> list[SimulatedDevice]:
    return [SimulatedDevice(f"sim-{number}", bundles=BUNDLES, **values) for number in range(count)]


@contextmanager
def serving(database: Database, address: BrokerAddress, root: str = ROOT, **settings: Any) -> Iterator[Service]:
    service = Service(database, address, root, **{"settle": 0.5, **settings})
    thread = threading.Thread(target=service.run, name="fleet service")
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join(60)
        assert not thread.is_alive()


def wait_for_devices(database: Database, count: int) -> None:
    """Until all are known, and have answered enough for a baseline."""

    def known() -> bool:
        with database.read() as connection:
            found = devices.facts(connection, time.time()).values()
        ready = [each for each in found if each.online and each.report and each.counters]
        return len(ready) == count and all(each.counters.requests >= BASELINE for each in ready if each.counters)

    until(known, f"{count} devices in the registry")


def start(database: Database, version: str, **changes: Any) -> int:
    """Start a rollout of ``model@version``; its number."""
    spec = read_spec({"bundle": f"model@{version}", **QUICK, **changes})
    with database.write() as connection:
        traits = [row.traits for row in devices.rows(connection)]
        bundle = Bundle("model", version, digest_of(f"model@{version}"))
        made = rollouts.add(
            connection, lambda number: draft(spec, traits, number=number, bundle=bundle, by="ann", now=time.time())
        )
        rollouts.start_rollout(connection, made.id, time.time())
    return made.id


def load(database: Database, number: int) -> Rollout:
    with database.read() as connection:
        return rollouts.load(connection, number)


def wait_for_state(database: Database, number: int, *states: str) -> Rollout:
    def reached() -> Rollout | None:
        found = load(database, number)
        return found if found.state in states else None

    with contextlib.suppress(AssertionError):
        return until(reached, f"rollout {number} to be {' or '.join(states)}", ROLLOUT_SECONDS)
    found = load(database, number)
    raise AssertionError(f"rollout {number} is {found.state} ({found.reason}), {[w.state for w in found.waves]}")


def nothing_unsent(database: Database) -> bool:
    with database.read() as connection:
        return not outbox.unsent(connection)
