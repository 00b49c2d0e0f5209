"""The service against a real broker and thirty simulated devices."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge_bundle.broker import parse_broker
from edge_bundle.broker_session import BrokerSession
from fleet.controller.retained import OURS
from fleet.rollout.states import TargetState, TurnBack, WaveState
from fleet.store import audit
from fleet.store import devices as registry
from fleet.store.database import Database, parse_database
from tests.broker import Broker
from tests.fleet.simulate.links import living
from tests.fleet.stage import (
    ROOT,
    load,
    make_devices,
    nothing_unsent,
    serving,
    start,
    wait_for_devices,
    wait_for_state,
)
from tests.fleet.waiting import until
from tests.postgres import Postgres

pytestmark = pytest.mark.broker


def retained(broker: Broker, count: int) -> dict[str, bytes]:
    """The wishes that the broker holds, by device."""
    with BrokerSession(parse_broker(broker.url), "looks") as session:
        session.subscribe(f"{ROOT}/d/+/desired")
        found: dict[str, bytes] = {}
        end = time.monotonic() + 30
        while len(found) < count and time.monotonic() < end:
            message = session.next_message(0.5)
            if message is not None:
                found[message.topic.split("/")[3]] = message.payload
        return found


def test_a_good_bundle_reaches_everybody_and_bad_ones_the_first_wave_alone(database: Database, broker: Broker) -> None:
    devices = make_devices(30)
    with living(devices, broker.address), serving(database, broker.address):
        wait_for_devices(database, 30)
        good = start(database, "2.0.0")
        assert wait_for_state(database, good, "done", "paused", "rolled_back").reason == "30 baked"
        assert {device.active for device in devices} == {"model@2.0.0"}
        bad = start(database, "3.0.0")
        found = wait_for_state(database, bad, "rolled_back")
        assert "canary_drift" in found.reason
        slow = start(database, "4.0.0", gates={"first_token_p95": False})
        found = wait_for_state(database, slow, "rolled_back")
        assert "tokens/s" in found.reason
        (tried,) = [each for each in found.targets.values() if each.turn_back is not None]
        assert (tried.state, tried.turn_back) == (TargetState.ROLLED_BACK, TurnBack.DONE)
        assert {device.active for device in devices} == {"model@2.0.0"}
    # One device got each of the two; all of them what was good, once.
    assert sum(device.installed.count("model@4.0.0") for device in devices) == 1
    assert all(device.installed.count("model@2.0.0") in (1, 2) for device in devices)
    assert all(len(set(device.wishes)) == len(device.wishes) for device in devices)
    with database.read() as connection:
        assert audit.verify(connection) > 10
        actions = [each.action for each in audit.entries(connection, subject=f"rollout {bad}")]
    database.close()
    assert actions == ["wave.open", "wave.failed", "rollout.rolling_back", "rollout.rolled_back"]


def test_a_broker_that_was_emptied_is_given_the_wishes_again(tmp_path: Path, broker: Broker) -> None:
    database = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    database.create()
    devices = make_devices(4)
    with living(devices, broker.address), serving(database, broker.address):
        wait_for_devices(database, 4)
        number = start(database, "2.0.0", waves=["100%"])
        wait_for_state(database, number, "done")
        before = retained(broker, 4)
        assert len(before) == 4
        broker.wipe()
        until(lambda: retained(broker, 4) == before, "the wishes to be back")
    # The same documents: nobody installed anything again.
    assert all(device.installed == ["model@2.0.0"] for device in devices)
    database.close()


def test_somebody_elses_wish_is_left_alone(tmp_path: Path, broker: Broker) -> None:
    database = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    database.create()
    devices = make_devices(2, pace=0.4)
    with living(devices, broker.address), serving(database, broker.address):
        wait_for_devices(database, 2)
        number = start(database, "2.0.0", waves=["100%"])
        until(lambda: load(database, number).targets["sim-0"].seen, "the wish to be seen on the broker")
        with BrokerSession(parse_broker(broker.url), "somebody") as session:
            document = b'{"revision": "mine", "bundle": {"name": "model", "version": "1.0.0"}}'
            session.publish(f"{ROOT}/d/sim-0/desired", document, retain=True)
        found = until(lambda: _superseded(database, number), "the target to be given up")
        assert "by revision mine" in found
        until(lambda: load(database, number).waves[0].state is not WaveState.OPEN, "the other one to go on")
        assert retained(broker, 2)["sim-0"] == document
    database.close()


def _superseded(database: Database, number: int) -> str:
    target = load(database, number).targets["sim-0"]
    return target.message if target.state is TargetState.SUPERSEDED else ""


def test_a_broker_that_is_away_is_waited_for(tmp_path: Path, broker: Broker) -> None:
    database = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    database.create()
    devices = make_devices(3)
    broker.stop()
    with living(devices, broker.address), serving(database, broker.address):
        broker.start()
        wait_for_devices(database, 3)
        number = start(database, "2.0.0", waves=["100%"])
        broker.kill()
        broker.start()
        wait_for_state(database, number, "done")
        until(lambda: nothing_unsent(database), "everything to be sent")
    assert all(device.installed == ["model@2.0.0"] for device in devices)
    database.close()


def test_revisions_of_ours_are_known() -> None:
    assert OURS.fullmatch("ro12.w2.a1")
    assert OURS.fullmatch("ro12.w2.a1.back")
    assert not OURS.fullmatch("mine")


def test_a_database_that_is_gone_for_a_while_loses_nothing(postgres: Postgres, broker: Broker) -> None:
    url = parse_database(postgres.create("gone_for_a_while"))
    database = Database(url)
    database.create()
    devices = make_devices(6)
    with living(devices, broker.address), serving(database, broker.address):
        wait_for_devices(database, 6)
        number = start(database, "2.0.0", waves=["1", "100%"])
        until(lambda: load(database, number).waves[0].state == "baking", "the first wave to bake")
        postgres.stop()
        # Said while nobody could write it down: a retained document that comes only once.
        with BrokerSession(parse_broker(broker.url), "newcomer") as session:
            newcomer = make_devices(1)[0]
            newcomer.name = "late-1"
            for message in newcomer.birth(time.time()):
                session.publish(f"{ROOT}/d/late-1/{message.topic}", message.payload, retain=False)
        postgres.start()
        assert wait_for_state(database, number, "done", "paused", "rolled_back").state == "done"
        with database.read() as connection:
            assert registry.find(connection, "late-1").info is not None
    assert all(device.installed == ["model@2.0.0"] for device in devices)
    database.close()
