"""The registry: what is heard, what operators say, and counters across restarts and days."""

from __future__ import annotations

import msgspec
import pytest

from contract.errors import RequestInvalid
from contract.mqtt.device import Health
from contract.mqtt.encoding import encode
from contract.mqtt.reports import BundleState, Reported
from fleet.rollout.counters import Reading
from fleet.store import counters, devices
from fleet.store.counters import DAY, Sample
from fleet.store.database import Database
from fleet.store.devices import DeviceUpdate, Event
from tests.fleet.rollout.world import work
from tests.fleet.store.test_rollouts import info

READY = Health(True, [], 0, 0)


def text(document: msgspec.Struct) -> str:
    return encode(document).decode()


def test_a_device_is_what_it_said_last(database: Database) -> None:
    state = BundleState("model", "1.0.0", "a" * 64, 3)
    reported = Reported("r1", "IDLE", None, state, None, None)
    with database.write() as connection:
        devices.take(connection, [
            DeviceUpdate(device="box", at=5.0, online=True, boots=("b1",), seen_at=5.0, info=text(info("box"))),
        ])  # fmt: skip
        devices.take(connection, [
            DeviceUpdate(device="box", at=6.0, reported=text(reported), health=text(READY), desired="r1"),
        ])  # fmt: skip
        devices.change(connection, "box", labels={"site": "oslo", "rack": "3"}, pinned=True)
        found = devices.find(connection, "box")
        facts = devices.facts(connection, 7.0)["box"]
    assert found.traits.hardware == "x86_64 4c 8G"
    assert (found.traits.site, found.traits.labels["rack"], found.traits.groups) == ("oslo", "3", ("office",))
    assert (found.traits.bundle, found.traits.ram, found.traits.agent) == ("model@1.0.0", 8 * 2**30 - 9, "0.1.0")
    assert (facts.online, facts.pinned, facts.ready, facts.desired) == (True, True, True, "r1")
    assert facts.report is not None
    assert facts.report.active is not None
    assert facts.report.active.digest == "a" * 64


def test_labels_can_be_taken_away(database: Database) -> None:
    with database.write() as connection:
        devices.take(connection, [DeviceUpdate(device="box", at=1.0)])
        devices.change(connection, "box", labels={"site": "oslo"})
        devices.change(connection, "box", labels={"site": ""})
        assert devices.find(connection, "box").traits.site == ""
        with pytest.raises(RequestInvalid, match="no device 'other' was heard"):
            devices.change(connection, "other", pinned=True)


def test_a_boot_that_comes_back_means_two_devices_of_one_name(database: Database) -> None:
    with database.write() as connection:
        for boot in ("one", "one", "two"):
            devices.take(connection, [DeviceUpdate(device="box", at=1.0, boots=(boot,))])
        assert devices.find(connection, "box").reliable
        devices.take(connection, [DeviceUpdate(device="box", at=1.0, boots=("one",))])
        found = devices.find(connection, "box")
        assert not found.reliable
        assert "two devices" in found.trouble
        devices.change(connection, "box", reliable=True)
        assert devices.find(connection, "box").reliable


def take(database: Database, at: float, era: float, requests: int) -> list[str]:
    with database.write() as connection:
        return counters.take(connection, [Sample("box", at, Reading(era, work(requests)), 0.5)])


def test_totals_go_on_over_restarts_and_say_where_they_cannot(database: Database) -> None:
    assert take(database, 60.0, 1.0, 500) == []
    assert take(database, 120.0, 1.0, 530) == []
    assert take(database, 180.0, 2.0, 4) == []
    assert take(database, 181.0, 2.0, 3) == ["box"]
    with database.read() as connection:
        assert counters.day_before(connection, 180.0 + DAY)["box"].requests == 34
        assert counters.day_before(connection, 179.0 + DAY)["box"].requests == 30
        assert counters.day_before(connection, 59.0 + DAY) == {}


def test_memory_alone_is_no_sample_of_counters(database: Database) -> None:
    take(database, 60.0, 1.0, 500)
    with database.write() as connection:
        counters.take(connection, [Sample("box", 99.0, None, 0.25), Sample("new", 99.0, None, 0.5)])
        devices.take(connection, [DeviceUpdate(device="box", at=1.0), DeviceUpdate(device="new", at=1.0)])
        facts = devices.facts(connection, 100.0)
    assert (facts["box"].heard_at, facts["box"].memory_available) == (60.0, 0.25)
    assert facts["box"].counters is not None
    assert facts["box"].counters.requests == 0
    assert facts["new"].counters is None


def test_pruning_keeps_what_a_day_back_is_looked_up_by(database: Database) -> None:
    take(database, 60.0, 1.0, 500)
    take(database, 120.0, 1.0, 530)
    with database.write() as connection:
        counters.prune(connection, 10 * DAY)
        assert counters.day_before(connection, 10 * DAY)["box"].requests == 30


def test_events_are_kept_newest_first(database: Database) -> None:
    with database.write() as connection:
        devices.note_events(connection, [Event(float(n), "box", "install", "{}") for n in range(3)])
        assert [each.at for each in devices.events(connection, "box", 2)] == [2.0, 1.0]
