"""A rollout with two controllers of which the first dies at a point, and what must hold whatever point that was."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from sqlalchemy import func, select

from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import BrokerSession, Message
from fleet.ingest.collector import Collector
from fleet.ingest.inbox import Inbox
from fleet.rollout.model import Rollout
from fleet.rollout.states import ENDED, IN_PROGRESS
from fleet.store import audit, outbox
from fleet.store.database import Database, parse_database
from fleet.store.schema import target
from tests.fleet.crash.controller import Controller, Place, Point
from tests.fleet.simulate.device import FIRST, SimulatedDevice
from tests.fleet.simulate.links import living
from tests.fleet.stage import load, make_devices, start
from tests.fleet.waiting import until

DEVICES = 4
AT_A_TIME = 2
OFF = dict.fromkeys(("tokens_per_second", "first_token_p95", "error_rate", "crashes", "memory"), False)

Story = Literal["good", "bad"]
"""A bundle that everybody gets, or one that the first device refuses, so that it is turned back."""

_VERSIONS: dict[Story, str] = {"good": "2.0.0", "bad": "3.0.0"}


class Outcome(NamedTuple):
    """``reached``: the first controller died where it should."""

    reached: bool
    seconds: float


class Spy:
    """Hears every wish: of one revision there is one document."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], set[bytes]] = defaultdict(set)
        self.last: dict[str, bytes] = {}

    def hear(self, message: Message) -> None:
        device = message.topic.split("/")[-2]
        revision = message.payload.decode().partition('"revision":"')[2].partition('"')[0]
        self.documents[device, revision].add(message.payload)
        self.last[device] = message.payload


def play(place: Place, address: BrokerAddress, story: Story, point: Point | None) -> Outcome:
    """One rollout from the start to its end.

    Raises:
        AssertionError: something did not hold.
    """
    began = time.monotonic()
    database = Database(parse_database(place.database))
    database.create()
    devices = make_devices(DEVICES, pace=0.02)
    _register(database, devices, place.root)
    spy = Spy()
    number = start(database, _VERSIONS[story], waves=["1", "100%"], max_in_progress=AT_A_TIME, gates=OFF)
    first = Controller(place, ("controller",), point)
    second = Controller(place, ("controller", "ingest"))
    with (
        BrokerSession(address, f"spy-{place.root.replace('/', '-')}", on_message=spy.hear) as session,
        living(devices, address, place.root),
    ):
        session.subscribe(f"{place.root}/d/+/desired")
        with _running(first):
            until(lambda: first.leads or not first.alive, "the first controller to lead")
            with _running(second):
                found = until(lambda: _look(database, number), "the rollout to end")
                _settled(database)
        reached = first.killed
    _check(database, found, devices, spy, story)
    database.close()
    return Outcome(reached, time.monotonic() - began)


@contextmanager
def _running(controller: Controller) -> Iterator[None]:
    controller.start()
    try:
        yield
    finally:
        controller.end()


def _register(database: Database, devices: list[SimulatedDevice], root: str) -> None:
    inbox = Inbox(root)
    for device in devices:
        for each in device.birth(time.time()):
            inbox.put(f"{root}/d/{device.name}/{each.topic}", each.payload, retained=False, now=time.time())
    Collector(database).store(inbox.take(), time.time())


def _look(database: Database, number: int) -> Rollout | None:
    """The rollout, when it has ended. Never are more devices asked at a time than allowed, nor one by two."""
    with database.read() as connection:
        asked = select(func.count()).select_from(target).where(target.c.state.in_(list(IN_PROGRESS)))
        assert (connection.execute(asked).scalar() or 0) <= AT_A_TIME
        open_twice = select(target.c.device).where(target.c.open).group_by(target.c.device).having(func.count() > 1)
        assert connection.execute(open_twice).all() == []
    found = load(database, number)
    return found if found.state in ENDED else None


def _settled(database: Database) -> None:
    def nothing_unsent() -> bool:
        with database.read() as connection:
            return not outbox.unsent(connection)

    until(nothing_unsent, "everything to be sent")


def _check(database: Database, found: Rollout, devices: list[SimulatedDevice], spy: Spy, story: Story) -> None:
    assert found.state == ("done" if story == "good" else "rolled_back"), found.reason
    for device in devices:
        assert len(set(device.wishes)) == len(device.wishes), device.wishes
    wished = [device.wishes for device in devices]
    if story == "good":
        assert [device.installed for device in devices] == [["model@2.0.0"]] * DEVICES
        assert [len(each) for each in wished] == [1] * DEVICES
    else:
        assert [device.installed for device in devices] == [[]] * DEVICES
        assert {device.active for device in devices} == {FIRST}
        assert sorted(len(each) for each in wished) == [0] * (DEVICES - 1) + [2]
    doubled = {key: texts for key, texts in spy.documents.items() if len(texts) > 1}
    assert not doubled
    with database.read() as connection:
        assert {wish.device: wish.payload for wish in outbox.current(connection).values()} == spy.last
        assert audit.verify(connection) > 0
