"""A controller that dies before or after each of its effects, one after the other: the next one ends where one that
never died does, and every device hears the same wishes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import Connection

from fleet.controller.publisher import Publisher
from fleet.controller.reconciler import Reconciler
from fleet.rollout.model import Bundle, Rollout
from fleet.rollout.plan import draft
from fleet.rollout.spec import read_spec
from fleet.store import audit, devices, rollouts
from fleet.store.database import Database, parse_database
from fleet.store.leader import Leader
from tests.fleet.simulate.device import Behaviour, Message, SimulatedDevice, digest_of

ROOT = "edge/v1"
SPEC = {
    "where": "*", "waves": ["1", "100%"], "bake": "5s", "deadline": "2m",
    "gates": dict.fromkeys(("tokens_per_second", "first_token_p95", "error_rate", "crashes", "memory"), False),
}  # fmt: skip
STEPS = 60
"""Turns of two seconds in which every rollout here ends."""


class PowerCut(BaseException):
    """The process is gone; nothing after it is done."""


class Plug:
    """Pulled before or after effect number ``at``; with None it only counts."""

    def __init__(self, at: int | None = None, side: Literal["before", "after"] = "before") -> None:
        self.count = 0
        self._at = at
        self._side = side

    @contextmanager
    def effect(self) -> Iterator[None]:
        number, self.count = self.count, self.count + 1
        if number == self._at and self._side == "before":
            raise PowerCut
        yield
        if number == self._at:
            raise PowerCut


class Stage:
    """Three simulated devices, a broker that is a dictionary, a real database, and a clock that is turned by hand."""

    def __init__(self, database_file: Path, version: str) -> None:
        self.now = 1_000_000.0
        self.file = database_file
        bundles = {"model@3.0.0": Behaviour(fails="CANARY")}
        self.devices = {f"box-{n}": SimulatedDevice(f"box-{n}", pace=0.2, bundles=bundles) for n in range(3)}
        self.held: dict[str, bytes] = {}
        self.plug = Plug()
        self.boot()
        self.database.create()
        self.ingest = Database(parse_database(f"sqlite:///{self.file}"))
        spec = read_spec({"bundle": f"model@{version}", **SPEC})
        self.hear({device: device.birth(self.now) for device in self.devices.values()})
        with self.database.write() as connection:
            traits = [row.traits for row in devices.rows(connection)]
            bundle = Bundle("model", version, digest_of(f"model@{version}"))
            made = rollouts.add(
                connection, lambda number: draft(spec, traits, number=number, bundle=bundle, by="ann", now=self.now)
            )
            rollouts.start_rollout(connection, made.id, self.now)

    def boot(self) -> None:
        """A new process on the same database."""
        self.database = Database(parse_database(f"sqlite:///{self.file}"))
        self.leader = Leader(self.database, "test")
        self.reconciler = Reconciler(self.database, self.leader, lambda: self.now)
        self.publisher = Publisher(self.database, self.leader, ROOT, lambda: self.now)
        write = self.database.write

        @contextmanager
        def cut() -> Iterator[Connection]:
            with self.plug.effect(), write() as connection:
                yield connection

        self.database.write = cut  # type: ignore[method-assign]

    def die(self) -> None:
        """The kernel gives back what the process held."""
        self.leader.release()
        self.database.close()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """As the broker does: keep it, and hand it to the device."""
        assert retain
        with self.plug.effect():
            self.held[topic] = payload
            device = self.devices[topic.split("/")[3]]
            self.hear({device: device.wish(payload, self.now)})

    def hear(self, said: Mapping[SimulatedDevice, list[Message]]) -> None:
        """Into the registry, past the plug: ingest is somebody else."""
        updates = []
        for device, messages in said.items():
            payloads = {each.topic: each.payload.decode() for each in messages}
            found = {name: payloads[name] for name in ("info", "health", "reported") if name in payloads}
            updates.append(
                devices.DeviceUpdate(device=device.name, at=self.now, online=True, seen_at=self.now, **found)
            )
        with self.ingest.write() as connection:
            devices.take(connection, updates)

    def close(self) -> None:
        self.die()
        self.ingest.close()

    def turn(self) -> None:
        """What the service does in one turn."""
        assert self.leader.acquire(self.now)
        self.reconciler.run()
        self.publisher.send(self)

    def play(self) -> Rollout:
        """Turn after turn until it has ended; whoever dies is followed by another."""
        for _ in range(STEPS):
            try:
                self.turn()
            except PowerCut:
                self.die()
                self.plug = Plug()
                self.boot()
            self.now += 2.0
            self.hear({device: device.tick(self.now) for device in self.devices.values()})
            with self.database.read() as connection:
                found = rollouts.load(connection, 1)
            if found.state in ("done", "rolled_back"):
                return found
        raise AssertionError(f"it is still {found.state}: {found.reason}")


def outcome(stage: Stage, found: Rollout) -> tuple[object, ...]:
    with stage.database.read() as connection:
        lines = audit.verify(connection)
    states = {name: (each.state, each.reason, each.attempt, each.turn_back) for name, each in found.targets.items()}
    return (
        found.state, found.reason, states, stage.held, lines,
        {name: (device.wishes, device.installed) for name, device in stage.devices.items()},
    )  # fmt: skip


@pytest.mark.parametrize("version", ["2.0.0", "3.0.0"])
def test_whenever_it_dies_it_ends_the_same(version: str, tmp_path: Path) -> None:
    whole = Stage(tmp_path / "whole.db", version)
    before = whole.plug.count
    expected = outcome(whole, whole.play())
    effects = whole.plug.count - before
    assert effects > 6
    whole.close()
    for number in range(effects):
        for side in ("before", "after"):
            directory = tmp_path / f"{number}-{side}"
            directory.mkdir()
            stage = Stage(directory / "fleet.db", version)
            stage.plug = Plug(number, side)  # type: ignore[arg-type]
            assert outcome(stage, stage.play()) == expected, (number, side)
            stage.close()
            shutil.rmtree(directory)


def test_the_stage_notices_a_wish_that_is_sent_twice(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "fleet.db", "2.0.0")
    name = next(iter(stage.devices))
    for revision in ("one", "two"):
        payload = b'{"revision": "%s", "bundle": {"name": "model", "version": "2.0.0"}}' % revision.encode()
        stage.publish(f"{ROOT}/d/{name}/desired", payload, retain=True)
    assert stage.devices[name].wishes == ["one", "two"]
    stage.close()
