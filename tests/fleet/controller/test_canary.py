"""The quality canary over a real broker: devices that nobody else asks are judged by what they answer it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleet.rollout.states import TargetState, TurnBack
from fleet.store import canary
from fleet.store import devices as registry
from fleet.store.database import Database, parse_database
from tests.broker import Broker
from tests.fleet.simulate.device import Behaviour, SimulatedDevice
from tests.fleet.simulate.links import living
from tests.fleet.stage import load, serving, start, wait_for_state
from tests.fleet.waiting import until

pytestmark = pytest.mark.broker

CANARY: dict[str, Any] = {
    "prompts": [
        {"prompt": "Say what is expected.", "expect": "what was expected"},
        {"prompt": "And again.", "expect": ["nothing", "EXPECTED"]},
    ]
}
BUNDLES = {"model@3.0.0": Behaviour(says="Bananas, all of them."), "model@4.0.0": Behaviour(mute=True)}


def idle_devices(count: int) -> list[SimulatedDevice]:
    return [SimulatedDevice(f"idle-{n}", requests_per_second=0.0, bundles=BUNDLES) for n in range(count)]


def test_idle_boxes_are_judged_and_a_bundle_that_is_fast_but_wrong_is_turned_back(
    tmp_path: Path, broker: Broker
) -> None:
    database = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    database.create()
    devices = idle_devices(4)
    with living(devices, broker.address), serving(database, broker.address):
        with_counters(database, 4)
        good = start(database, "2.0.0", canary=CANARY, waves=["100%"])
        assert wait_for_state(database, good, "done", "paused", "rolled_back").reason == "4 baked"
        wrong = start(database, "3.0.0", canary=CANARY, waves=["1", "100%"])
        found = wait_for_state(database, wrong, "done", "paused", "rolled_back")
        assert "quality canary: 0 % of the answers as expected, 90 % at least" in found.reason
        (tried,) = [each for each in found.targets.values() if each.attempt]
        assert (tried.state, tried.turn_back) == (TargetState.ROLLED_BACK, TurnBack.DONE)
        # What says nothing at all is no success either.
        mute = start(database, "4.0.0", canary=CANARY, waves=["1", "100%"], patience="1s")
        found = wait_for_state(database, mute, "done", "paused", "rolled_back")
        assert (found.state, "quality canary: 0 of 1 devices answered its prompts" in found.reason) == ("paused", True)
    assert {device.active for device in devices} == {"model@2.0.0", "model@4.0.0"}
    with database.read() as connection:
        scores = canary.scores(connection, good)
    assert {(each.asked, each.answered, each.expected) for all_ in scores.values() for each in all_.values()} == {
        (20, 20, 20)
    }
    assert all(set(all_) == {0, 1} for all_ in scores.values())
    assert load(database, good).state == "done"
    database.close()


def with_counters(database: Database, count: int) -> None:
    def heard() -> bool:
        with database.read() as connection:
            found = registry.facts(connection, 0.0).values()
        return sum(each.heard_at is not None and each.online and each.report is not None for each in found) == count

    until(heard, f"{count} devices with their counters")
