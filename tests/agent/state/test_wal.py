"""A database and its log, read from their bytes alone: always what SQLite reads."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.state.wal import FRAME_HEADER_BYTES, HEADER_BYTES, merge


def dump(connection: sqlite3.Connection) -> list[str]:
    return list(connection.iterdump())


def examine(connection: sqlite3.Connection) -> list[str]:
    """What SQLite says of it, and what it holds: a log that was cut below what is in the database already leaves it
    torn, for SQLite as for us.
    """
    try:
        verdict = [str(fault) for [fault] in connection.execute("PRAGMA integrity_check")]
        return [*verdict, *dump(connection)]
    except sqlite3.DatabaseError as error:
        return [str(error)]


def read(database: bytes) -> list[str]:
    connection = sqlite3.connect(":memory:")
    if database:
        connection.deserialize(database)
    found = examine(connection)
    connection.close()
    return found


def as_sqlite_reads(database: bytes, log: bytes) -> list[str]:
    """Of a copy, which it may repair as it likes."""
    with TemporaryDirectory() as place:
        path = Path(place) / "copy.db"
        path.write_bytes(database)
        Path(f"{path}-wal").write_bytes(log)
        connection = sqlite3.connect(path)
        found = examine(connection)
        connection.close()
        return found


ACTION = st.tuples(st.sampled_from(["add", "drop", "checkpoint", "vacuum"]), st.integers(1, 30))


@settings(max_examples=40, deadline=None)
@given(st.lists(ACTION, max_size=12), st.sampled_from([512, 4096, 65536]), st.data())
def test_it_reads_what_sqlite_reads_however_the_log_is_cut_or_spoiled(
    actions: list[tuple[str, int]], page_size: int, data: st.DataObject
) -> None:
    with TemporaryDirectory() as place:
        path = Path(place) / "state.db"
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, text TEXT)")
        for action, number in actions:
            if action == "add":
                connection.execute("BEGIN")
                connection.executemany("INSERT INTO kept (text) VALUES (?)", [("x" * 700 + str(number),)] * number)
                connection.execute("COMMIT")
            elif action == "drop":
                connection.execute("DELETE FROM kept WHERE number % ? = 0", (number,))
            elif action == "checkpoint":
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            else:
                connection.executescript("PRAGMA incremental_vacuum(4)")
        database, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
        assert read(merge(database, log)) == ["ok", *dump(connection)]
        connection.close()
    cut = data.draw(st.integers(0, len(log)))
    assert read(merge(database, log[:cut])) == as_sqlite_reads(database, log[:cut])
    if log:
        at = data.draw(st.integers(0, len(log) - 1))
        spoiled = log[:at] + bytes([log[at] ^ 0x55]) + log[at + 1 :]
        assert read(merge(database, spoiled)) == as_sqlite_reads(database, spoiled)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=HEADER_BYTES + 2 * (FRAME_HEADER_BYTES + 512)))
def test_bytes_that_are_no_log_change_nothing(database: bytes, log: bytes) -> None:
    found = merge(database, log)
    assert found[:18] == database[:18]
    assert found[20:] == database[20:]
