"""From messages to the registry: coalesced, bounded, and nothing lost where the database is away."""

from __future__ import annotations

import msgspec
import pytest

from contract.errors import StoreBroken
from contract.mqtt.device import Status
from contract.mqtt.encoding import encode
from fleet.ingest.collector import Collector
from fleet.ingest.inbox import MAX_EVENTS, Inbox
from fleet.store import devices
from fleet.store.database import Database, parse_database
from fleet.store.leader import Leader, LeadershipLost
from tests.fleet.simulate.device import SimulatedDevice
from tests.postgres import Postgres

ROOT = "edge/v1"


def say(inbox: Inbox, name: str, topic: str, payload: bytes, *, retained: bool = False, now: float = 5.0) -> None:
    inbox.put(f"{ROOT}/d/{name}/{topic}", payload, retained=retained, now=now)


def birth(inbox: Inbox, name: str, *, as_name: str | None = None) -> None:
    for each in SimulatedDevice(name).birth(1.0):
        say(inbox, as_name or name, each.topic, each.payload)


def store(database: Database, inbox: Inbox) -> None:
    Collector(database).store(inbox.take(), 6.0)


def find(database: Database, name: str) -> devices.DeviceRow:
    with database.read() as connection:
        return devices.find(connection, name)


def test_a_device_is_in_the_registry_once_it_has_spoken(database: Database) -> None:
    inbox = Inbox(ROOT)
    birth(inbox, "box-1")
    store(database, inbox)
    found = find(database, "box-1")
    assert (found.traits.online, found.traits.arch, found.seen_at, found.trouble) == (True, "aarch64", 5.0, "")


def test_what_no_record_can_hold_keeps_nobody_else_waiting(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a reader ever let it through: here the one that refuses characters that no terminal shows."""
    monkeypatch.setattr("fleet.ingest.reading._bounded", lambda *_: None)
    database = Database(parse_database(postgres.create("no_record")))
    database.create()
    inbox = Inbox(ROOT)
    for name in ("box-1", "box-2", "box-3"):
        birth(inbox, name)
    info = msgspec.json.decode(
        next(each.payload for each in SimulatedDevice("box-2").birth(1.0) if each.topic == "info")
    )
    say(inbox, "box-2", "info", msgspec.json.encode({**info, "host": {"arch": "x86\0"}}))
    store(database, inbox)
    with database.read() as connection:
        assert [each.device for each in devices.traits(connection)] == ["box-1", "box-3"]
    database.close()


def test_what_is_retained_is_of_nobody_knows_when(database: Database) -> None:
    inbox = Inbox(ROOT)
    for each in (*SimulatedDevice("box-1").birth(1.0), *SimulatedDevice("box-1").telemetry(2.0)):
        say(inbox, "box-1", each.topic, each.payload, retained=True)
    store(database, inbox)
    assert find(database, "box-1").seen_at is None
    with database.read() as connection:
        assert devices.facts(connection, 9.0)["box-1"].counters is None


def test_a_copy_of_another_device_is_known_by_its_info(database: Database) -> None:
    inbox = Inbox(ROOT)
    birth(inbox, "box-2", as_name="box-1")
    store(database, inbox)
    found = find(database, "box-1")
    assert "says that it is 'box-2'" in found.trouble
    assert found.info is None


def test_what_cannot_be_read_leaves_what_was_known(database: Database) -> None:
    inbox = Inbox(ROOT)
    birth(inbox, "box-1")
    store(database, inbox)
    say(inbox, "box-1", "reported", b'{"revision": 7}')
    say(inbox, "box-1", "health", b"x" * 20_000)
    store(database, inbox)
    found = find(database, "box-1")
    assert found.reported is not None
    assert found.health is not None
    assert "more than 16384 bytes" in found.trouble
    assert found.reliable


def test_counters_that_fall_make_a_device_unreliable(database: Database) -> None:
    inbox = Inbox(ROOT)
    device = SimulatedDevice("box-1")
    for now in (1.0, 9.0):
        for each in device.telemetry(now):
            say(inbox, "box-1", each.topic, each.payload)
        store(database, inbox)
    assert find(database, "box-1").reliable
    for each in SimulatedDevice("box-1").telemetry(1.0):
        say(inbox, "box-1", each.topic, each.payload)
    store(database, inbox)
    assert not find(database, "box-1").reliable


def test_two_that_take_turns_under_one_name_are_seen_within_one_batch(database: Database) -> None:
    inbox = Inbox(ROOT)
    for boot in ("one", "two", "one"):
        say(inbox, "box-1", "status", encode(Status(True, boot)))
    store(database, inbox)
    assert "two devices" in find(database, "box-1").trouble


def test_a_flood_costs_no_more_than_one_message(database: Database) -> None:
    inbox = Inbox(ROOT)
    for number in range(20_000):
        say(inbox, "box-1", "health", b'{"ready": true, "reasons": [], "queue": %d, "active": 0}' % number)
        say(inbox, "box-1", "event/install", b'{"at": "now", "detail": {}}')
    batch = inbox.take()
    assert {kind: len(kept) for kind, kept in batch.messages["box-1"].items()} == {"health": 1, "event": MAX_EVENTS}
    assert batch.dropped == 20_000 - MAX_EVENTS
    Collector(database).store(batch, 6.0)
    health = find(database, "box-1").health
    assert health is not None
    assert health.queue == 19_999


def test_names_beyond_the_bound_are_left_out_and_counted(database: Database) -> None:
    inbox = Inbox(ROOT, max_devices=3)
    for number in range(10):
        say(inbox, f"box-{number}", "status", encode(Status(True, "b")))
    batch = inbox.take()
    assert (len(batch.messages), batch.dropped) == (3, 7)
    with database.write() as connection:
        devices.take(connection, [devices.DeviceUpdate(device=f"box-{n}", at=1.0) for n in range(9)], most=4)
        assert len(devices.rows(connection)) == 4


def test_a_document_that_was_removed_from_the_broker_is_not_forgotten(database: Database) -> None:
    inbox = Inbox(ROOT)
    birth(inbox, "box-1")
    store(database, inbox)
    for kind in ("info", "reported", "status", "desired"):
        say(inbox, "box-1", kind, b"")
    store(database, inbox)
    found = find(database, "box-1")
    assert found.info is not None
    assert (found.traits.online, found.desired) == (False, "")


def test_what_could_not_be_written_is_written_later_and_what_is_newer_wins(database: Database) -> None:
    inbox = Inbox(ROOT)
    birth(inbox, "box-1")
    batch = inbox.take()
    say(inbox, "box-1", "status", encode(Status(False, "boot-1")))
    inbox.put_back(batch)
    store(database, inbox)
    found = find(database, "box-1")
    assert found.info is not None
    assert not found.traits.online


def test_a_batch_is_written_whole_or_not_at_all(database: Database) -> None:
    inbox = Inbox(ROOT)
    birth(inbox, "box-1")
    with database.write() as connection:
        connection.exec_driver_sql("DROP TABLE event")
        connection.exec_driver_sql("DROP TABLE sample_last")
    for each in SimulatedDevice("box-1").telemetry(1.0):
        say(inbox, "box-1", each.topic, each.payload)
    with pytest.raises(Exception, match="cannot be used") as raised:
        store(database, inbox)
    assert isinstance(raised.value, StoreBroken) or not database.is_sqlite
    with database.read() as connection:
        assert devices.rows(connection) == []


def hear_a_life(inbox: Inbox) -> None:
    """Two births, with a will between them, documents, a sample and an event."""
    device = SimulatedDevice("box-1")
    for each in [*device.birth(1.0), *device.telemetry(1.0), *device.telemetry(2.0)]:
        say(inbox, "box-1", each.topic, each.payload)
    say(inbox, "box-1", "status", encode(Status(False, "boot-1")))
    say(inbox, "box-1", "status", encode(Status(True, "boot-2")))
    say(inbox, "box-1", "event/install", b'{"at": "2026-01-01T00:00:00Z", "detail": {"bundle": "model@2.0.0"}}')


def test_who_goes_on_for_another_writes_what_both_heard_once(database: Database) -> None:
    one, other = Inbox(ROOT), Inbox(ROOT)
    hear_a_life(one)
    hear_a_life(other)
    store(database, one)
    with database.read() as connection:
        before = devices.rows(connection), devices.facts(connection, 9.0), devices.events(connection, "box-1")
    assert len(before[2]) == 1
    # The first process is gone; the other does not know how far it came.
    batch = other.take()
    batch.settle()
    Collector(database).store(batch, 7.0)
    with database.read() as connection:
        after = devices.rows(connection), devices.facts(connection, 9.0), devices.events(connection, "box-1")
    assert after == before
    assert find(database, "box-1").reliable


def test_who_goes_on_for_another_writes_what_that_one_did_not_come_to(database: Database) -> None:
    other = Inbox(ROOT)
    hear_a_life(other)
    batch = other.take()
    batch.settle()
    Collector(database).store(batch, 7.0)
    found = find(database, "box-1")
    assert found.info is not None
    assert (found.traits.online, found.reliable, found.traits.bundle) == (True, True, "model@1.0.0")
    with database.read() as connection:
        assert len(devices.events(connection, "box-1")) == 1


def test_who_was_overtaken_writes_nothing(database: Database) -> None:
    old, new = Leader(database, "old", "ingest"), Leader(database, "new", "ingest")
    assert old.acquire(1.0)
    epoch = old.epoch
    old.release()
    # It was paused, and does not know that another one writes.
    old.epoch = epoch
    assert new.acquire(2.0)
    inbox = Inbox(ROOT)
    hear_a_life(inbox)
    with pytest.raises(LeadershipLost):
        Collector(database, old.fence).store(inbox.take(), 3.0)
    with database.read() as connection:
        assert devices.rows(connection) == []
    new.release()


def test_an_older_report_that_a_node_retains_does_not_replace_a_live_one(database: Database) -> None:
    device, inbox = SimulatedDevice("box-1"), Inbox(ROOT)
    (older,) = [each for each in device.birth(1.0) if each.topic == "reported"]
    device.active = "model@2.0.0"
    (newer,) = [each for each in device.birth(2.0) if each.topic == "reported"]
    say(inbox, "box-1", "reported", newer.payload, now=100.0)
    say(inbox, "box-1", "reported", older.payload, retained=True, now=110.0)
    store(database, inbox)
    assert find(database, "box-1").traits.bundle == "model@2.0.0"
    # What was missed meanwhile is seen at the next look.
    say(inbox, "box-1", "reported", older.payload, retained=True, now=170.0)
    store(database, inbox)
    assert find(database, "box-1").traits.bundle == "model@1.0.0"
