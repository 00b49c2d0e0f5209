"""Opening databases: both kinds, and every way in which one cannot be used."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from contract.errors import ConfigInvalid, RequestInvalid, SourceUnavailable, StoreBroken, StoreFull, UsageError
from fleet.store import tokens
from fleet.store.database import Database, parse_database
from fleet.store.schema import METADATA, SINCE_1, VERSION, device, leader, schema_version
from tests.postgres import Postgres


def test_a_new_database_is_made_once(database_url: str) -> None:
    made = Database(parse_database(database_url))
    assert made.create()
    assert not made.create()
    made.check()
    made.close()


def test_what_was_raised_in_a_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as connection:
        connection.execute(insert(leader).values(id=1, epoch=1, holder="a", since=0.0))
        raise RuntimeError("in the middle")
    with database.read() as connection:
        assert connection.execute(select(leader)).first() is None


def test_a_value_that_no_record_can_hold_is_the_askers_fault(database: Database) -> None:
    """A zero byte in a text of PostgreSQL, a number of more than 64 bits in SQLite."""
    with pytest.raises(RequestInvalid, match="no record can hold what was given"), database.write() as connection:
        connection.execute(insert(leader).values(id=1, epoch=10**25, holder="a\0", since=0.0))
    with database.read() as connection:
        assert connection.execute(select(leader)).first() is None


def test_another_version_is_refused_and_left_alone(database: Database) -> None:
    with database.write() as connection:
        connection.execute(schema_version.update().values(version=99))
    with pytest.raises(ConfigInvalid, match="has version 99 of the tables"):
        database.check()
    with pytest.raises(ConfigInvalid, match="has version 99 of the tables"):
        database.create()


def test_a_database_of_version_1_gets_the_tables_and_columns_that_came_since(database: Database) -> None:
    METADATA.drop_all(database.engine, tables=SINCE_1)
    with database.write() as connection:
        for column in ("arch", "agent", "bundle", "cores", "ram", "groups"):
            connection.execute(text(f'ALTER TABLE device DROP COLUMN "{column}"'))
        connection.execute(
            text(
                "INSERT INTO device (id, site, hardware, labels, pinned, online, boots, reliable, trouble, first_seen) "
                "VALUES ('old', '', '', '{}', false, false, '[]', true, '', 1.0)"
            )
        )
        connection.execute(schema_version.update().values(version=1))
        connection.execute(insert(leader).values(id=1, epoch=7, holder="a", since=0.0))
    with pytest.raises(ConfigInvalid, match="`edge-fleet init` adds what is missing"):
        database.check()
    assert not database.create()
    database.check()
    with database.read() as connection:
        assert tokens.rows(connection) == []
        assert connection.execute(select(leader.c.epoch)).scalar() == 7
        (row,) = connection.execute(select(device))
    assert (row.id, row.bundle, row.cores, row.groups) == ("old", "", None, "[]")


def test_somebody_elses_tables_are_refused(database_url: str) -> None:
    found = Database(parse_database(database_url))
    with found.write() as connection:
        connection.execute(text("CREATE TABLE device (name TEXT)"))
    with pytest.raises(ConfigInvalid, match="'device' that is not ours"):
        found.create()
    with pytest.raises(ConfigInvalid, match="`edge-fleet init` makes its tables"):
        found.check()
    found.close()


def test_a_file_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    found = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    with pytest.raises(ConfigInvalid, match="`edge-fleet init` makes it"):
        found.check()
    assert not (tmp_path / "fleet.db").exists()


@pytest.mark.parametrize(
    "url", ["", "fleet.db", "mysql://host/fleet", "sqlite://", "sqlite:///:memory:", "postgresql+asyncpg://host/fleet"]
)
def test_what_is_no_database_is_said_with_what_to_write(url: str) -> None:
    with pytest.raises(UsageError, match=r"sqlite:///fleet\.db or postgresql://"):
        parse_database(url)


def test_a_password_is_never_told() -> None:
    found = Database(parse_database("postgresql://me:secret@127.0.0.1:1/fleet"))
    with pytest.raises(SourceUnavailable) as raised:
        found.create()
    assert "secret" not in raised.value.message
    assert "postgresql://me:***@127.0.0.1:1/fleet" in raised.value.message


def test_what_is_no_database_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreBroken, match="file is not a database"):
        Database(parse_database(f"sqlite:///{tmp_path}/fleet.db")).create()


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    made = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    made.create()
    with pytest.raises(StoreFull, match="there is no room"), made.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.exec_driver_sql("CREATE TABLE large (data BLOB)")
        connection.exec_driver_sql("INSERT INTO large VALUES (zeroblob(1000000))")
    made.close()


def test_commits_survive_a_power_cut(tmp_path: Path) -> None:
    made = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    made.create()
    with made.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    made.close()
    with sqlite3.connect(tmp_path / "fleet.db") as plain:
        assert plain.execute("SELECT version FROM schema_version").fetchone() == (VERSION,)


def test_a_server_that_is_gone_is_unavailable_and_comes_back(postgres: Postgres) -> None:
    found = Database(parse_database(postgres.create("gone")))
    found.create()
    postgres.stop()
    try:
        with pytest.raises(SourceUnavailable, match="cannot be used"):
            found.check()
    finally:
        postgres.start()
    found.check()
    found.close()
