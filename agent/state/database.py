"""``state.db``: SQLite in WAL mode with synchronous=FULL, so that a committed transaction survives a power cut.

The only module that opens it; what it holds is described in :mod:`agent.state.schema`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.host.disk_space import explain
from agent.state import integrity
from agent.state.layout import StateDirectory
from agent.state.wal import merge
from contract.errors import StoreBroken, StoreFull
from contract.reasons import Reason
from contract.system.durable import Effects

log = logging.getLogger("edge_agent.state")

FILE = "state.db"

BUSY_TIMEOUT_SECONDS = 10.0
"""The installer writes from its own process; its transactions take milliseconds."""

MODE = 0o600

SCHEMA_VERSION = 1
"""As it stands in the file (``PRAGMA user_version``); a release that changes the schema migrates what it finds."""

_DISK_FAULTS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}

TIDY_PAGES = 2048
"""8 MiB at a time, so that commits do not wait long."""


class Database:
    """One connection, shared by the threads of a process; transactions are serialised.

    ``schema`` creates the tables; it is that of :data:`SCHEMA_VERSION`.

    Where the disk cannot be written, :meth:`recall` gives a copy in memory; ``unwritable`` says why it is one, and is
    None for the file itself.

    Raises:
        StoreBroken, StoreFull: from every method.
    """

    def __init__(self, path: Path, schema: str, effects: Effects | None = None) -> None:
        self._begin(path, schema, effects)
        try:
            self._connection = _connect(path)
        except (sqlite3.Error, OSError) as error:
            raise explain(path.parent, _translate(error)) from error
        try:
            self._prepare(path, schema)
        except (StoreFull, StoreBroken) as error:
            self._connection.close()
            if is_unwritable(error):
                raise explain(path.parent, error) from error.__cause__
            raise
        except BaseException:
            self._connection.close()
            raise

    def _begin(self, path: Path, schema: str, effects: Effects | None) -> None:
        self._path = path
        self._schema = schema
        self._effects = effects or Effects()
        self._lock = threading.RLock()
        self._refuses = False
        self.unwritable: StoreFull | StoreBroken | None = None

    @classmethod
    def recall(cls, path: Path, schema: str, why: StoreFull | StoreBroken, effects: Effects | None = None) -> Database:
        """A copy in memory of what is committed at ``path``, which takes writes and forgets them at its end.

        Nobody may write the file meanwhile, in this process nobody may have it open.
        """
        found = cls.__new__(cls)
        found._begin(path, schema, effects)
        found.unwritable = why
        found._connection = _copy(path)
        try:
            found._prepare(path, schema)
        except BaseException:
            found._connection.close()
            raise
        return found

    def refusing_writes(self) -> Database:
        """The same copy in memory, seen by somebody who must not forget: every transaction raises ``unwritable``."""
        found = type(self).__new__(type(self))
        found.__dict__.update(self.__dict__)
        found._refuses = True
        return found

    def restore(self, carry: Callable[[sqlite3.Connection, sqlite3.Connection], None] | None = None) -> None:
        """Go on with the file, if it can be written again; ``carry`` takes along what memory alone has (from, to).

        Raises:
            StoreBroken, StoreFull: it cannot, and nothing has changed.
        """
        with self._lock:
            if self.unwritable is None:
                return
            file = Database(self._path, self._schema, self._effects)
            try:
                file.probe()
                if carry is not None:
                    with file.transaction("carry over") as connection:
                        carry(self._connection, connection)
            except BaseException:
                file.close()
                raise
            if not self._refuses:
                self._connection.close()
            self._connection, self._refuses, self.unwritable = file._connection, False, None

    def probe(self) -> None:
        """Write something that changes nothing."""
        with self.transaction("probe") as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {int(version)}")

    def _prepare(self, path: Path, schema: str) -> None:
        version = int(self.query("PRAGMA user_version")[0][0])
        if version not in (0, SCHEMA_VERSION):
            raise StoreBroken(f"{FILE} was written by a newer agent (schema {version}); install that agent again")
        if version == 0:
            check_not_lost(StateDirectory(path.parent))
            with self.transaction("create") as connection:
                for statement in schema.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        self._repair(StateDirectory(path.parent))

    def _repair(self, directory: StateDirectory) -> None:
        """Set aside the rows that cannot be read, so that everybody who opens the file can go on with the rest."""
        try:
            if integrity.is_intact(self._connection):
                return
            # What refers to a row that goes is mended, too.
            self._connection.execute("PRAGMA foreign_keys=OFF")
            try:
                with self.transaction("set aside") as connection:
                    integrity.repair(connection, directory)
            finally:
                self._connection.execute("PRAGMA foreign_keys=ON")
            log.error("%s has rows that cannot be read: they were set aside, see `edge-agent doctor`", FILE)
        except (StoreFull, StoreBroken):
            raise
        except sqlite3.Error as error:
            raise _translate(error) from error
        except Exception:
            # Whoever comes upon such a row fails at it, and at nothing else.
            log.exception("the rows of %s could not be checked", FILE)

    @contextmanager
    def transaction(self, name: str) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable once the block is left; ``name`` identifies the commit to tests."""
        with self._lock:
            if self._refuses and self.unwritable is not None:
                raise again(self.unwritable)
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
    for path in (directory.trust, directory.bundles):
        try:
            found = path.is_dir() and any(path.iterdir())
        except OSError as error:
            raise StoreBroken(f"{path} cannot be listed: {error.strerror}") from error
        if found:
            raise StoreBroken(
                f"{FILE} is empty or missing although {path.name}/ beside it is not: it was lost; move the state "
                "directory away, provision trust again and let the agent fetch its bundle again"
            )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        if path.stat().st_mode & 0o777 != MODE:
            path.chmod(MODE)
        connection.row_factory = sqlite3.Row
        # What was deleted is overwritten, and its room goes back to the disk: see tidy. Only a new file heeds it.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _copy(path: Path) -> sqlite3.Connection:
    try:
        held = merge(*(file.read_bytes() if file.exists() else b"" for file in (path, path.with_name(f"{FILE}-wal"))))
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        if held:
            connection.deserialize(held)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA foreign_keys=ON")
    except (sqlite3.Error, OSError) as error:
        raise _translate(error) from error
    return connection


def is_unwritable(error: StoreFull | StoreBroken) -> bool:
    """Whether the disk is to blame that the file cannot be used, and not what is in the file or who has it open."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DISK_FAULTS
    return isinstance(error, StoreFull) or isinstance(cause, OSError)


def again(error: StoreFull | StoreBroken) -> StoreFull | StoreBroken:
    """The same error, to be raised once more."""
    if isinstance(error, StoreFull):
        return StoreFull(error.message)
    return StoreBroken(error.message, reason=error.reason or Reason.STORE_BROKEN)


def _translate(error: Exception) -> StoreFull | StoreBroken:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StoreFull(f"no space left for {FILE}")
    return StoreBroken(f"{FILE} cannot be used: {error}")
