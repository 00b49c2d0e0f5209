"""Group commit for the ledger of answers: one thread, one transaction for all that waits, results back to asyncio.

A commit costs a flush of the disk (milliseconds, much more on an SD card). While one runs, everything that arrives
collects and shares the next, so that the rate of requests is not bound to the rate of flushes.

An operation that fails for a reason of its own (text that cannot be encoded, a fault of ours) fails alone: it is undone
to its savepoint, and its neighbours are committed. The thread outlives whatever is raised in it.

An answer that the disk does not take is held and tried again until it does: were it given out before, the request would
be run again after a restart and answered twice. Meanwhile nothing else is taken either, so what is held is bounded by
the requests that were accepted before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from agent.state import result_store
from agent.state.answer_integrity import Lost, repair_answers
from agent.state.database import Database
from agent.state.result_memory import ResultMemory
from agent.state.result_store import Key, Unfinished, Verdict
from contract.errors import EdgeBundleError

log = logging.getLogger("edge_agent.answers")

T = TypeVar("T")

MAX_GROUP = 256
"""Operations in one transaction; bounds how long the first of them waits for the last."""

SWEEP_SECONDS = 30.0
"""Between two looks for answers that are too old."""

LAZY_SECONDS = 1.0
"""How long notes that nobody waits for (delivered) may wait for company."""


RETRY_SECONDS = 1.0
"""Between two attempts to store the answers that are held."""


_OWN_FAULTS = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""Of SQLite's errors, those that are about one statement's values; all others are about the disk, and so about all."""


class _Operation:
    """``patient``: it waits until the disk takes it."""

    def __init__(
        self, run: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any] | None, *, patient: bool = False
    ) -> None:
        self.run = run
        self.future = future
        self.patient = patient


class ResultWriter:
    """Owns a :class:`Database` connection and a thread. Futures raise StoreFull or StoreBroken, an answer's never; and
    whatever else went wrong with that one operation.

    With ``keep_text`` false no prompt and no answer is ever written: answers are kept in memory alone, as long and as
    many as promised, and are gone after a restart.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time, *, keep_text: bool = True) -> None:
        self._database = database
        self._clock = clock
        self._memory = None if keep_text else ResultMemory()
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._held: list[_Operation] = []
        self._failing = False
        self._open = True
        self._lazy: list[_Operation] = []
        self._swept = float("-inf")
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def _submit(self, run: Callable[[sqlite3.Connection], T], *, patient: bool = False) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Operation(run, future, patient=patient))
        return future

    @property
    def volatile(self) -> bool:
        """Answers are kept in memory alone, since the disk cannot be written."""
        return self._database.unwritable is not None

    @property
    def holding(self) -> int:
        """Answers that the disk has not taken yet."""
        return len(self._held)

    def accept(
        self,
        key: Key,
        fingerprint: str,
        request: bytes,
        *,
        deadline_at: float | None,
        correlation: bytes | None,
        may_insert: bool,
    ) -> asyncio.Future[Verdict]:
        """:func:`result_store.accept`, durable when the future is done."""
        now = self._clock()
        kept = None if self._memory is not None else request
        return self._submit(
            lambda connection: self._recall(key, result_store.accept(
                connection, key, fingerprint, kept,
                now=now, deadline_at=deadline_at, correlation=correlation, may_insert=may_insert,
            ))
        )  # fmt: skip

    def look_up(self, key: Key) -> asyncio.Future[Verdict]:
        return self._submit(lambda connection: self._recall(key, result_store.look_up(connection, key)))

    def _recall(self, key: Key, verdict: Verdict) -> Verdict:
        """Fill in an answer that only memory has; runs in the thread."""
        if verdict.kind != "answered" or verdict.last is not None:
            return verdict
        last = None if self._memory is None else self._memory.get(key)
        return Verdict("gone") if last is None else Verdict("answered", last)

    def streaming(self, key: Key, attempt: int) -> asyncio.Future[None]:
        return self._submit(lambda connection: result_store.mark_streaming(connection, key, attempt))

    def answered(self, key: Key, last: bytes) -> asyncio.Future[bytes]:
        """The bytes that count from now on, once they are stored; not before, however long that takes."""
        now = self._clock()
        memory = self._memory
        if memory is None:
            return self._submit(
                lambda connection: result_store.mark_answered(connection, key, last, now=now) or last, patient=True
            )

        def store(connection: sqlite3.Connection) -> bytes:
            result_store.mark_answered(connection, key, None, now=now)
            return memory.put(key, last, now)

        return self._submit(store, patient=True)

    def rejected(self, key: Key, last: bytes) -> asyncio.Future[bytes]:
        """``last`` says that it could not be run, and holds no text of anybody; stored as an answer is."""
        now = self._clock()

        def store(connection: sqlite3.Connection) -> bytes:
            result_store.mark_rejected(connection, key, last, now=now)
            return last

        return self._submit(store, patient=True)

    def delivered(self, key: Key) -> None:
        """Noted with the next commit; losing the note costs one more delivery of the same bytes."""
        self._queue.put(_Operation(lambda connection: result_store.mark_delivered(connection, key), None))

    def set_aside_unreadable(self) -> asyncio.Future[list[Lost]]:
        """:func:`answer_integrity.repair_answers`, before anything else is read."""
        return self._submit(repair_answers)

    def unfinished(self) -> asyncio.Future[list[Unfinished]]:
        return self._submit(result_store.unfinished)

    def undelivered(self) -> asyncio.Future[list[tuple[Key, bytes | None, bytes | None]]]:
        return self._submit(result_store.undelivered)

    def probe(self) -> asyncio.Future[None]:
        """Write something that changes nothing: whether the store can be written at all."""

        def rewrite(connection: sqlite3.Connection) -> None:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {int(version)}")

        return self._submit(rewrite)

    async def flush(self) -> None:
        """Everything that was asked for so far is committed, and its callbacks have run."""
        await self._submit(lambda connection: None)

    async def close(self) -> None:
        """Commit what waits and end the thread; requests whose answer the disk does not take stay unfinished."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while self._open:
            taken: list[_Operation] = []
            try:
                self._round(taken)
            except Exception as error:
                # Whoever waits for one of them waits no longer, and the next ones are served.
                log.exception("the writer of answers failed at %d operations", len(taken))
                self._hand_over([(operation.future, None, error) for operation in taken])

    def _round(self, taken: list[_Operation]) -> None:
        """Wait for operations and commit them; ``taken`` are those whose callers are not answered yet."""
        patience = RETRY_SECONDS if self._held else SWEEP_SECONDS
        before = len(self._lazy)
        taken += self._lazy
        self._lazy = []
        self._collect(taken, LAZY_SECONDS if before else patience)
        fresh = len(taken) > before
        if fresh and self._open and len(taken) < MAX_GROUP and all(each.future is None for each in taken):
            self._lazy = list(taken)
            return
        sweeping = time.monotonic() - self._swept >= SWEEP_SECONDS
        if sweeping:
            self._swept = time.monotonic()
            taken.append(_Operation(self._expire, None))
        if taken or self._held:
            self._commit(self._held + taken)
        taken.clear()
        if sweeping:
            self._tidy()

    def _tidy(self) -> None:
        try:
            self._database.tidy()
        except EdgeBundleError:
            # Then it is the next time; a disk that fails is noticed by what has to be stored.
            pass
        except Exception:
            log.exception("the store could not be cleaned up")

    def _expire(self, connection: sqlite3.Connection) -> None:
        now = self._clock()
        result_store.expire(connection, now=now)
        if self._memory is not None:
            self._memory.expire(now)
            # From a time when texts were kept.
            result_store.forget_texts(connection)

    def _collect(self, taken: list[_Operation], timeout: float) -> None:
        """Add what waits now, in order (nothing after ``timeout`` seconds), and note whether no more will come."""
        limit = len(taken) + MAX_GROUP
        try:
            operation = self._queue.get(timeout=timeout)
            while operation is not None:
                taken.append(operation)
                if len(taken) >= limit:
                    return
                operation = self._queue.get_nowait()
            self._open = False
        except queue.Empty:
            return

    def _commit(self, group: list[_Operation]) -> None:
        results: list[_Result] = []
        try:
            with self._database.transaction("answers") as connection:
                results.extend(_run_alone(connection, operation) for operation in group)
            self._held, self._failing = [], False
        except EdgeBundleError as error:
            self._held = [operation for operation in group if operation.patient]
            if not self._failing:
                log.warning("answers cannot be stored, %d wait for the disk: %s", len(self._held), error.message)
            self._failing = True
            results = [(operation.future, None, error) for operation in group if not operation.patient]
        except Exception as error:
            # Nobody knows whose fault it is: all of them hear of it, none is tried for ever.
            log.exception("a group of %d operations failed", len(group))
            self._held = []
            results = [(operation.future, None, error) for operation in group]
        self._hand_over(results)

    def _hand_over(self, results: list[_Result]) -> None:
        # The loop may be closed already when the process is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_resolve, results)


_Result = tuple[asyncio.Future[Any] | None, Any, Exception | None]


def _run_alone(connection: sqlite3.Connection, operation: _Operation) -> _Result:
    """Run one operation of a transaction so that what is wrong with it alone concerns nobody else.

    Raises:
        sqlite3.Error: the disk, and so all of the transaction, failed.
    """
    connection.execute("SAVEPOINT operation")
    try:
        result = operation.run(connection)
    except Exception as error:
        if isinstance(error, sqlite3.Error) and not isinstance(error, _OWN_FAULTS):
            raise
        log.exception("an operation failed, the others of its group are stored")
        connection.execute("ROLLBACK TO operation")
        connection.execute("RELEASE operation")
        return operation.future, None, error
    connection.execute("RELEASE operation")
    return operation.future, result, None


def _resolve(results: list[_Result]) -> None:
    for future, result, error in results:
        if future is None or future.done():
            continue
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):
            # A future refuses this one.
            future.set_exception(RuntimeError(repr(error)))
        else:
            future.set_exception(error)
