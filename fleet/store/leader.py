"""One controller at a time, and one process that writes what devices say. The lock says who may try, the epoch who may
commit: a leader that was believed dead, and wakes up, finds a higher one and cannot change anything.
"""

from __future__ import annotations

import contextlib
import os
from typing import Literal

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import SQLAlchemyError

from contract.errors import StoreBroken
from contract.system.file_lock import open_lock, take_lock
from fleet.store.database import Database
from fleet.store.schema import leader

Task = Literal["controller", "ingest"]
"""What one process does at a time; each has a leader of its own."""

_LOCKS: dict[Task, int] = {"controller": 7218310935, "ingest": 7218310936}
"""Numbers of the advisory locks on PostgreSQL."""

_ROWS: dict[Task, int] = {"controller": 1, "ingest": 2}
_FILES: dict[Task, str] = {"controller": "leader", "ingest": "ingest"}


class LeadershipLost(Exception):
    """Another process leads; nothing was committed."""


class Leader:
    """The right to do ``task``, once :meth:`acquire` has got it."""

    def __init__(self, database: Database, holder: str, task: Task = "controller") -> None:
        self._database = database
        self._holder = holder
        self._task: Task = task
        self._connection: Connection | None = None
        self._handle: int | None = None
        self.epoch = 0

    @property
    def held(self) -> bool:
        return self.epoch > 0

    def acquire(self, now: float) -> bool:
        """Lead, if nobody does.

        Raises:
            SourceUnavailable, StoreBroken: the database cannot be used.
        """
        if self.held:
            return True
        if not (self._lock_file() if self._database.is_sqlite else self._lock_session()):
            return False
        try:
            with self._database.write() as connection:
                self.epoch = _raise_epoch(connection, _ROWS[self._task], self._holder, now)
        except BaseException:
            self.release()
            raise
        return True

    def _lock_file(self) -> bool:
        path = self._database.file
        assert path is not None
        try:
            handle = open_lock(path.with_name(f"{path.name}.{_FILES[self._task]}"), 0o644)
        except OSError as error:
            raise StoreBroken(f"{path} cannot have its lock: {error.strerror}") from error
        taken = False
        with contextlib.suppress(OSError):
            taken = take_lock(handle)
        if not taken:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def _lock_session(self) -> bool:
        """On a connection of its own: the database gives the lock back when it breaks."""
        try:
            connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        except SQLAlchemyError as error:
            raise self._database.explain(error) from error
        try:
            got = bool(connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCKS[self._task]})").scalar())
        except SQLAlchemyError as error:
            connection.invalidate()
            connection.close()
            raise self._database.explain(error) from error
        if not got:
            connection.close()
            return False
        self._connection = connection
        return True

    def confirm(self) -> None:
        """See that the lock is still ours.

        Raises:
            LeadershipLost: its connection broke.
        """
        if self._connection is None:
            return
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError as error:
            self.release()
            raise LeadershipLost("the connection that held the lock is gone") from error

    def fence(self, connection: Connection) -> None:
        """Refuse to change anything in this transaction unless we lead.

        Raises:
            LeadershipLost: another process does.
        """
        query = select(leader.c.epoch).where(leader.c.id == _ROWS[self._task])
        if not self._database.is_sqlite:
            # Whoever wants to raise it waits for us.
            query = query.with_for_update(read=True)
        found = connection.execute(query).scalar()
        if not self.held or found != self.epoch:
            mine = self.epoch
            self.release()
            raise LeadershipLost(f"epoch {found} leads, ours was {mine}")

    def release(self) -> None:
        """Let another one lead."""
        self.epoch = 0
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_LOCKS[self._task]})")
            with contextlib.suppress(SQLAlchemyError):
                # Back in the pool it could be the one that holds the lock.
                self._connection.invalidate()
                self._connection.close()
            self._connection = None


def _raise_epoch(connection: Connection, number: int, holder: str, now: float) -> int:
    raised = connection.execute(
        update(leader)
        .where(leader.c.id == number)
        .values(epoch=leader.c.epoch + 1, holder=holder, since=now)
        .returning(leader.c.epoch)
    ).scalar()
    if raised is not None:
        return int(raised)
    connection.execute(leader.insert().values(id=number, epoch=1, holder=holder, since=now))
    return 1
