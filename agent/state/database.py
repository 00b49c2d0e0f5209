"""``state.db``: SQLite in WAL mode with synchronous=FULL, so that a committed transaction survives a power cut.

The only module that opens it. Each module with tables of its own lists the migrations for them here.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.state.layout import StateDirectory
from contract.durable import Effects
from contract.errors import StoreBroken, StoreFull

FILE = "state.db"

BUSY_TIMEOUT_SECONDS = 10.0
"""The installer writes from its own process; its transactions take milliseconds."""

TIDY_PAGES = 2048
"""8 MiB at a time, so that commits do not wait long."""


class Database:
    """One connection, shared by the threads of a process; transactions are serialised.

    ``migrations[n]`` brings the schema from version n to n + 1 and is never changed once released.

    Raises:
        StoreBroken, StoreFull: from every method.
    """

    def __init__(self, path: Path, migrations: tuple[str, ...], effects: Effects | None = None) -> None:
        self._effects = effects or Effects()
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            path.chmod(0o600)
            self._connection.row_factory = sqlite3.Row
            # What was deleted is overwritten, and its room goes back to the disk: see tidy. Only a new file heeds it.
            self._connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            self._connection.execute("PRAGMA secure_delete=ON")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
        except (sqlite3.Error, OSError) as error:
            raise _translate(error) from error
        try:
            self._migrate(path, migrations)
        except BaseException:
            self._connection.close()
            raise

    def _migrate(self, path: Path, migrations: tuple[str, ...]) -> None:
        version = int(self.query("PRAGMA user_version")[0][0])
        if version == 0:
            check_not_lost(StateDirectory(path.parent))
        if version > len(migrations):
            raise StoreBroken(f"{FILE} was written by a newer agent (schema {version}); install that agent again")
        for number in range(version, len(migrations)):
            with self.transaction(f"migrate {number + 1}") as connection:
                for statement in migrations[number].split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number + 1}")

    @contextmanager
    def transaction(self, name: str) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable once the block is left; ``name`` identifies the commit to tests."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._effects.perform("commit", name, lambda: self._connection.execute("COMMIT"))
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise _translate(error) from error

    def query(self, sql: str, parameters: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        """Rows of a read-only statement."""
        with self._lock:
            try:
                return self._connection.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise _translate(error) from error

    def tidy(self) -> None:
        """Empty the log into the file, so that no deleted text stays in it, and give back some of the room it left."""
        with self._lock:
            try:
                self._effects.perform("commit", "tidy", self._give_back)
            except sqlite3.Error as error:
                raise _translate(error) from error

    def _give_back(self) -> None:
        # As a script: by execute, it gives back one page and stops.
        self._connection.executescript(f"PRAGMA incremental_vacuum({TIDY_PAGES}); PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def check_not_lost(directory: StateDirectory) -> None:
    """Refuse to begin anew beside what only an older state can have put there: with the state, what was active, the
    security epoch and the floor of trust are lost, and everything here would be taken for strays.

    Raises:
        StoreBroken.
    """
    for place in (directory.trust, directory.bundles):
        try:
            found = place.is_dir() and any(place.iterdir())
        except OSError as error:
            raise StoreBroken(f"{place} cannot be listed: {error.strerror}") from error
        if found:
            raise StoreBroken(
                f"{FILE} is empty or missing although {place.name}/ beside it is not: it was lost; move the state "
                "directory away, provision trust again and let the agent fetch its bundle anew"
            )


def _translate(error: Exception) -> StoreFull | StoreBroken:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StoreFull(f"no space left for {FILE}")
    return StoreBroken(f"{FILE} cannot be used: {error}")
