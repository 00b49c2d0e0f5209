"""Wishes that did not reach their devices."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from contract.mqtt.encoding import encode
from contract.mqtt.reports import BundleState, Reported
from fleet.rollout.model import Bundle
from fleet.rollout.plan import draft
from fleet.rollout.spec import read_spec
from fleet.store import devices, outbox, rollouts, schema
from fleet.store.database import Database
from fleet.store.devices import DeviceUpdate

WISH = '{"revision": "ro1.w1.a1"}'


def reported(revision: str | None) -> str:
    active = BundleState("model", "1.0.0", "0" * 64, 0)
    return encode(Reported(revision, "IDLE", None, active, None, None)).decode()


@pytest.fixture
def held(database: Database) -> Database:
    """A rollout whose wish the broker holds for ``box`` since second 10, as its device has not heard yet."""
    with database.write() as connection:
        update_ = DeviceUpdate(device="box", at=1.0, online=True, reported=reported(None), desired="ro1.w1.a1")
        devices.take(connection, [update_])
        traits = [row.traits for row in devices.rows(connection)]
        spec, bundle = read_spec({"bundle": "model@2.0.0", "where": "*"}), Bundle("model", "2.0.0", "1" * 64)
        rollouts.add(connection, lambda number: draft(spec, traits, number=number, bundle=bundle, by="ann", now=1.0))
        rollouts.start_rollout(connection, 1, 1.0)
        row = {"device": "box", "revision": "ro1.w1.a1", "payload": WISH, "rollout": 1, "written_at": 9.0}
        connection.execute(schema.outbox.insert().values(**row, sent_at=10.0))
    return database


def unheard(database: Database, before: float = 20.0) -> list[str]:
    with database.read() as connection:
        return outbox.unheard(connection, before)


def hear(database: Database, **values: str | bool) -> None:
    with database.write() as connection:
        devices.take(connection, [DeviceUpdate(device="box", at=30.0, **values)])  # type: ignore[arg-type]


def test_a_device_that_is_there_and_does_not_follow_is_sent_its_wish_again(held: Database) -> None:
    assert unheard(held) == ["box"]
    with held.write() as connection:
        outbox.send_again(connection, ["box"])
        assert [wish.payload.decode() for wish in outbox.unsent(connection)] == [WISH]
    assert unheard(held) == []


def test_time_is_given_to_hear_it(held: Database) -> None:
    assert unheard(held, before=10.0) == []


def test_one_that_follows_is_left_alone(held: Database) -> None:
    hear(held, reported=reported("ro1.w1.a1"))
    assert unheard(held) == []


def test_one_that_is_away_hears_it_when_it_is_back(held: Database) -> None:
    hear(held, online=False)
    assert unheard(held) == []


def test_somebody_elses_wish_is_not_fought(held: Database) -> None:
    hear(held, desired="mine")
    assert unheard(held) == []


def test_nothing_comes_of_a_rollout_that_has_ended(held: Database) -> None:
    with held.write() as connection:
        connection.execute(update(schema.rollout).values(state="done"))
    assert unheard(held) == []
