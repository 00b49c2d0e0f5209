"""A fleet that lives in simulated time, without a broker: real store, ingest and controller, simulated devices. In a
second there are hours of a fleet to look at.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from msgspec import structs

from contract.bundle.manifest import FileEntry, Manifest
from fleet import operations
from fleet.access.roles import Role
from fleet.controller.reconciler import Reconciler
from fleet.ingest.collector import Collector
from fleet.ingest.inbox import Inbox
from fleet.operations import Actor
from fleet.rollout.model import Rollout
from fleet.rollout.spec import read_spec
from fleet.store import audit, catalogue, devices, outbox, rollouts
from fleet.store.database import Database
from fleet.store.leader import Leader
from tests.contract.trust.samples import make_manifest
from tests.fleet.simulate.device import Behaviour, Message, SimulatedDevice, digest_of
from tests.fleet.web.stage import add_account

ROOT = "edge/v1"
SITES = ("oslo", "bergen", "tromso", "trondheim")
KINDS = ("kiosk", "gateway", "hall", "depot")
BUNDLES: Mapping[str, Behaviour] = {
    "smollm2@1.2.0": Behaviour(fails="CANARY"),
    "smollm2@1.3.0": Behaviour(speed=0.55),
}


class FleetInTime:
    """``end`` is now: time passes until then."""

    def __init__(self, database: Database, count: int, *, end: float, hours: float = 4.0) -> None:
        self.database = database
        self.now = end - hours * 3600
        self.end = end
        self._leader = Leader(database, "test")
        self._leader.acquire(self.now)
        self._reconciler = Reconciler(database, self._leader, lambda: self.now)
        self._collector = Collector(database)
        self._inbox = Inbox(ROOT, lambda: None)
        self._random = random.Random(4)
        self.devices = [
            SimulatedDevice(
                f"{SITES[n % 4]}-{KINDS[n // 4 % 4]}-{n // 16 + 1:02d}", pace=20.0, requests_per_second=0.9,
                bundles=BUNDLES, active="smollm2@1.0.0",
            )
            for n in range(count)
        ]  # fmt: skip
        self.offline: set[str] = set()
        for device in self.devices:
            self._hear(device, device.birth(self.now))
        self._store()
        with database.write() as connection:
            for device in self.devices:
                devices.change(connection, device.name, labels={"site": device.name.split("-")[0]})

    def _hear(self, device: SimulatedDevice, messages: list[Message]) -> None:
        for each in messages:
            self._inbox.put(f"{ROOT}/d/{device.name}/{each.topic}", each.payload, retained=False, now=self.now)

    def _store(self) -> None:
        self._collector.store(self._inbox.take(), self.now)

    def switch_off(self, name: str) -> None:
        self.offline.add(name)
        device = next(each for each in self.devices if each.name == name)
        self._hear(device, [device.will()])

    def pass_time(self, minutes: float, step: float = 60.0) -> None:
        """Devices count, obey and report; the controller decides."""
        until = self.now + minutes * 60
        while self.now < until:
            self.now = min(until, self.now + step)
            for device in self.devices:
                if device.name in self.offline:
                    continue
                device.requests_per_second = self._random.uniform(0.4, 1.4)
                self._hear(device, device.tick(self.now) + device.telemetry(self.now))
            self._store()
            self._reconciler.run()
            self._publish()

    def _publish(self) -> None:
        with self.database.write() as connection:
            waiting = outbox.unsent(connection)
            outbox.mark_sent(connection, waiting, self.now)
        known = {device.name: device for device in self.devices}
        for each in waiting:
            device = known[each.device]
            topic = f"{ROOT}/d/{device.name}/desired"
            self._inbox.put(topic, each.payload, retained=True, now=self.now)
            if device.name not in self.offline:
                self._hear(device, device.wish(each.payload, self.now))

    def start(self, bundle: str, by: str, **changes: Any) -> int:
        spec = read_spec({"bundle": bundle, "where": "*", "bake": "10m", "deadline": "1h"} | changes)
        with self.database.write() as connection:
            made = operations.start(connection, spec, None, Actor(by), self.now).rollout
        return made.id

    def steer(self, number: int, action: operations.Steering, by: str) -> Rollout:
        with self.database.write() as connection:
            return operations.steer(connection, number, action, Actor(by), self.now)

    def load(self, number: int) -> Rollout:
        with self.database.read() as connection:
            return rollouts.load(connection, number)

    def close(self) -> None:
        self._leader.release()


def tell_a_story(database: Database, *, end: float, count: int = 32) -> FleetInTime:
    """A good bundle everywhere, a bad one and a slow one stopped, and a third under way; accounts to look at it."""
    for name, roles in {
        "ann": [Role.OPERATOR], "bo": [Role.APPROVER], "cleo": [Role.VIEWER], "dag": [Role.ADMIN],
        "eva": [Role.PROMPTER],
    }.items():  # fmt: skip
        add_account(database, name, *roles)
    fleet = FleetInTime(database, count, end=end)
    fleet.pass_time(40)
    fleet.start("smollm2@1.1.0", "ann", waves=["1", "25%", "100%"])
    fleet.pass_time(45)
    fleet.start("smollm2@1.2.0", "ann", where="site=oslo or site=bergen", waves=["1", "50%", "100%"])
    fleet.pass_time(10)
    fleet.start("smollm2@1.3.0", "ann", waves=["2", "25%", "100%"], gates={"first_token_p95": False})
    fleet.pass_time(40)
    for device in fleet.devices[5:9]:
        fleet.switch_off(device.name)
    with database.write() as connection:
        operations.change_device(connection, fleet.devices[3].name, Actor("ann"), fleet.now, pinned=True)
        devices.mark_unreliable(connection, [fleet.devices[10].name], devices.UNTRUE_COUNTERS)
        catalogue.replace(connection, _manifests("1.1.0", "1.2.0", "1.3.0"), [], end - 900)
        catalogue.replace(connection, _manifests("1.1.0", "1.3.0", "1.4.0"), ["smollm2@1.2.0"], end)
    fleet.start("smollm2@1.5.0", "ann", approval=True, where="site=tromso", waves=["1", "100%"])
    fleet.start("smollm2@1.4.0", "ann", waves=["2", "30%", "100%"])
    while fleet.now < end and fleet.load(5).waves[1].state != "baking":
        fleet.pass_time(2)
    fleet.pass_time(4)
    with database.read() as connection:
        assert audit.verify(connection) > 10
    return fleet


def _manifests(*versions: str) -> dict[str, Manifest]:
    return {digest_of(f"smollm2@{version}"): _manifest(version) for version in versions}


def _manifest(version: str) -> Manifest:
    quality = {
        "perplexity": {"source": 12.41, "bundle": 12.86, "ratio": 1.036},
        "top1_agreement": 0.947,
        "kl_divergence": {"mean": 0.0213, "p99": 0.184},
        "texts": {"name": "passages", "tokens": 20480},
        "decoding": {"agreed_prefix_tokens": 61, "prompts": 16},
    }
    weights = FileEntry("model.onnx.data", 94_371_840, digest_of("weights"), "model", [])
    return structs.replace(make_manifest("smollm2", version, [weights]), quality=quality)
