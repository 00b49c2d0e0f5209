"""One controller at a time, and none that can commit without being it."""

from __future__ import annotations

import pytest

from fleet.store.database import Database, parse_database
from fleet.store.leader import Leader, LeadershipLost
from tests.postgres import Postgres


def test_one_leads_at_a_time_and_the_next_has_a_higher_epoch(database: Database) -> None:
    one, two = Leader(database, "one"), Leader(database, "two")
    assert one.acquire(1.0)
    assert one.acquire(1.0)
    assert not two.acquire(2.0)
    one.confirm()
    one.release()
    assert two.acquire(3.0)
    assert two.epoch == 2
    two.release()


def test_deciding_and_writing_are_led_apart(database: Database) -> None:
    controller, writer = Leader(database, "one"), Leader(database, "two", "ingest")
    assert controller.acquire(1.0)
    assert writer.acquire(1.0)
    assert not Leader(database, "three", "ingest").acquire(2.0)
    controller.release()
    again = Leader(database, "one")
    assert again.acquire(3.0)
    assert (again.epoch, writer.epoch) == (2, 1)
    with database.write() as connection:
        writer.fence(connection)
    again.release()
    writer.release()


def test_a_leader_that_was_overtaken_cannot_commit(database_url: str) -> None:
    first, second = Database(parse_database(database_url)), Database(parse_database(database_url))
    first.create()
    old, new = Leader(first, "old"), Leader(second, "new")
    assert old.acquire(1.0)
    # The lock is gone, as when the machine of a paused process was believed dead; the process does not know.
    epoch = old.epoch
    old.release()
    old.epoch = epoch
    assert new.acquire(2.0)
    with pytest.raises(LeadershipLost, match="epoch 2 leads, ours was 1"), first.write() as connection:
        old.fence(connection)
    assert not old.held
    with second.write() as connection:
        new.fence(connection)
    new.release()
    first.close()
    second.close()


def test_a_broken_connection_gives_the_lock_back(postgres: Postgres) -> None:
    url = parse_database(postgres.create("leaders"))
    database = Database(url)
    database.create()
    one, two = Leader(database, "one"), Leader(database, "two")
    assert one.acquire(1.0)
    with database.write() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        )
    with pytest.raises(LeadershipLost, match="the connection that held the lock is gone"):
        one.confirm()
    assert two.acquire(2.0)
    two.release()
    database.close()
