"""Rollouts in the database: whole or not at all, with the wishes they send, one open target a device."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET
from sqlalchemy import insert, select

from contract.errors import RequestInvalid, StoreBroken
from contract.mqtt.device import Info, Limits
from contract.mqtt.reading import parse_desired
from contract.windows import Window, read_window
from fleet.rollout.actions import MoveTarget, Publish, TakeSlot
from fleet.rollout.decide import decide
from fleet.rollout.model import Rollout
from fleet.rollout.operate import approve
from fleet.rollout.plan import draft
from fleet.rollout.selector import Traits
from fleet.rollout.states import RolloutState, TargetState
from fleet.store import devices, outbox, rollouts
from fleet.store.database import Database
from fleet.store.schema import target
from tests.fleet.rollout.world import BEGIN, NEW, World


def add(database: Database, world: World) -> Rollout:
    traits = [Traits(device=name, site=each.site) for name, each in world.rollout.targets.items()]
    with database.write() as connection:
        return rollouts.add(
            connection, lambda number: draft(world.spec, traits, number=number, bundle=NEW, by="ann", now=BEGIN)
        )


def load(database: Database, number: int) -> Rollout:
    with database.read() as connection:
        return rollouts.load(connection, number)


def step(database: Database, world: World, number: int) -> Rollout:
    with database.write() as connection:
        before = rollouts.load(connection, number, lock=True)
        return rollouts.save(connection, before, decide(before, world.facts, world.now), world.now)


def test_what_is_stored_is_what_was_planned(database: Database) -> None:
    added = add(database, World(holdout=World().spec.waves[0], slots_per_site=2))
    assert load(database, added.id) == added
    with database.read() as connection:
        assert rollouts.numbers(connection) == [added.id]
        assert not any(row.open for row in connection.execute(select(target)))


@pytest.mark.parametrize("number", [7, -1, 10**25])
def test_a_rollout_that_is_not_there_is_said(database: Database, number: int) -> None:
    with pytest.raises(RequestInvalid, match=f"there is no rollout {number}") as raised:
        load(database, number)
    assert raised.value.code == 404
    with database.read() as connection, pytest.raises(RequestInvalid, match="there is no rollout"):
        rollouts.overview(connection, number)


def test_nothing_is_left_of_a_rollout_that_could_not_be_stored_whole(database: Database) -> None:
    def broken(number: int) -> Rollout:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), database.write() as connection:
        rollouts.add(connection, broken)
    with database.read() as connection:
        assert rollouts.numbers(connection) == []


def test_states_and_wishes_are_written_together(database: Database) -> None:
    world = World(source="depot", slots_per_site=1)
    added = add(database, world)
    with database.write() as connection:
        rollouts.start_rollout(connection, added.id, BEGIN)
    # The first turn opens the wave and asks its device.
    after = step(database, world, added.id)
    (asked,) = [each for each in after.targets.values() if each.state is TargetState.ASKED]
    assert load(database, added.id) == after
    with database.read() as connection:
        (wish,) = outbox.unsent(connection)
        assert rollouts.slots(connection, BEGIN) == {asked.site: {asked.device: BEGIN + world.spec.slot_expires}}
        assert [each["state"] for each in rollouts.attempts(connection, asked.device)] == ["asked"]
    assert (wish.device, wish.revision) == (asked.device, f"ro{added.id}.w1.a1")
    document = parse_desired(wish.payload)
    assert document is not None
    assert (document.revision, document.bundle.name, document.source) == (wish.revision, "model", "depot")


def test_a_device_that_is_to_fetch_ahead_is_told_the_windows(database: Database) -> None:
    windows = (Window(14 * 60, 24 * 60, "Europe/Oslo", ("sat", "sun")), Window(0, 300, "UTC"))
    world = World(windows=windows, prefetch=True)
    added = add(database, world)
    with database.write() as connection:
        rollouts.start_rollout(connection, added.id, BEGIN)
    step(database, world, added.id)
    assert load(database, added.id).spec == world.spec
    with database.read() as connection:
        (wish,) = outbox.unsent(connection)
    document = parse_desired(wish.payload)
    assert document is not None and document.policy is not UNSET
    assert document.policy.prefetch
    assert tuple(read_window(each) for each in document.policy.windows) == windows
    assert json.loads(wish.payload)["policy"]["window"][0] == {
        "from": "14:00", "until": "24:00", "zone": "Europe/Oslo", "days": ["sat", "sun"],
    }  # fmt: skip


def test_a_turn_that_breaks_changes_neither_states_nor_wishes(database: Database) -> None:
    world = World()
    added = add(database, world)
    with database.write() as connection:
        rollouts.start_rollout(connection, added.id, BEGIN)
    before = load(database, added.id)
    with pytest.raises(RuntimeError), database.write() as connection:
        found = rollouts.load(connection, added.id, lock=True)
        rollouts.save(connection, found, decide(found, world.facts, BEGIN), BEGIN)
        raise RuntimeError("the power went")
    assert load(database, added.id) == before
    with database.read() as connection:
        assert outbox.unsent(connection) == []


def test_a_wish_is_sent_once_and_a_newer_one_takes_its_place(database: Database) -> None:
    added = add(database, World())
    name = next(iter(added.targets))
    with database.write() as connection:
        rollouts.start_rollout(connection, added.id, BEGIN)
        found = rollouts.load(connection, added.id)
        found = rollouts.save(connection, found, [Publish(name, "r1", NEW)], 1.0)
        (first,) = outbox.unsent(connection)
        rollouts.save(connection, found, [Publish(name, "r2", None)], 2.0)
        outbox.mark_sent(connection, [first], 3.0)
        (second,) = outbox.unsent(connection)
        assert (second.revision, second.payload) == ("r2", b"")
        outbox.mark_sent(connection, [second], 3.0)
        assert outbox.unsent(connection) == []
        outbox.send_again(connection, [name])
        assert outbox.unsent(connection) == [second] == list(outbox.current(connection).values())


def test_a_newer_rollout_takes_its_devices_in_the_transaction_that_starts_it(database: Database) -> None:
    world = World(approval=True)
    older, newer = add(database, World()), add(database, world)
    with database.write() as connection:
        rollouts.start_rollout(connection, older.id, BEGIN)
    with database.write() as connection:
        assert rollouts.start_rollout(connection, newer.id, BEGIN).state is RolloutState.WAITING_APPROVAL
    assert any(each.open for each in load(database, older.id).targets.values())
    with database.write() as connection:
        rollouts.begin(connection, newer.id, lambda found, now: approve(found, "bob", now), BEGIN)
    assert {each.state for each in load(database, older.id).targets.values()} == {TargetState.SUPERSEDED}
    with database.read() as connection:
        holders = [row.rollout for row in connection.execute(select(target).where(target.c.open))]
    assert holders == [newer.id] * len(newer.targets)


def test_the_database_itself_allows_one_open_target_a_device(database: Database) -> None:
    older, newer = add(database, World()), add(database, World())
    values: dict[str, Any] = {"position": 99, "wave": 1, "state": "asked", "open": True, "record": "{}"}
    with database.write() as connection:
        connection.execute(insert(target).values(rollout=older.id, device="twice", **values))
    with pytest.raises(StoreBroken, match="refuses what contradicts it"), database.write() as connection:
        connection.execute(insert(target).values(rollout=newer.id, device="twice", **values))


def test_expired_slots_are_gone(database: Database) -> None:
    added = add(database, World())
    name = next(iter(added.targets))
    with database.write() as connection:
        found = rollouts.save(connection, added, [TakeSlot("oslo", name, 50.0)], 1.0)
        assert rollouts.slots(connection, 49.0) == {"oslo": {name: 50.0}}
        assert rollouts.slots(connection, 50.0) == {}
        rollouts.save(connection, found, [MoveTarget(name, TargetState.SKIPPED, "no")], 51.0)
    assert load(database, added.id).targets[name].reason == "no"


def info(name: str) -> Info:
    return Info(name, "1", ["office"], {"agent": "0.1.0"}, {"arch": "x86_64", "cores": 4, "ram_bytes": 8 * 2**30 - 9},
                Limits(1, 1, 1, 1, 1, 1, 1), None, None)  # fmt: skip


def test_thousands_of_devices_are_drafted_and_loaded_whole(database: Database) -> None:
    names = [f"box-{number}" for number in range(3_000)]
    traits = [Traits(device=name, site=f"s{number % 50}") for number, name in enumerate(names)]
    with database.write() as connection:
        added = rollouts.add(
            connection, lambda number: draft(World().spec, traits, number=number, bundle=NEW, by="ann", now=BEGIN)
        )
    assert len(load(database, added.id).targets) == 3_000
    with database.write() as connection:
        devices.take(connection, [devices.DeviceUpdate(device=name, at=1.0, online=True) for name in names])
        assert len(devices.facts(connection, BEGIN)) == 3_000
