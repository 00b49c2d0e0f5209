"""Several ranges of one file on their way at the same time, handed over verified and in the order of the plan.

The lanes are threads that only read and hash; everything that touches the disk stays with whoever consumes them, so
that the order of effects does not depend on which lane was faster. What waits to be consumed is bounded by
``parallel + RUNS_AHEAD`` runs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from agent.install.bandwidth import Bandwidth
from agent.install.plan import Piece, Run, after
from agent.install.sources import Mirrors
from agent.install.staging import matches
from contract.errors import BundleRefused, EdgeBundleError, SourceUnavailable
from contract.layout import object_path
from contract.manifest import MAX_CHUNK_BYTES, FileEntry
from contract.reasons import Reason
from contract.source import BundleSource

RUNS_AHEAD = 2
"""Runs that may be finished while the one before them is not: a slow range must not idle the other lanes at once."""

Arrived = tuple[Piece, memoryview]
OnArrival = Callable[[int], None]


class _Stopped(Exception):
    """Nobody waits for this run any more."""


class _Delivery:
    """One run on its way: pieces, then None or the error that ended it."""

    def __init__(self, entry: FileEntry, run: Run, on_arrival: OnArrival) -> None:
        self.entry = entry
        self.run = run
        self.on_arrival = on_arrival
        self.arrived: queue.SimpleQueue[Arrived | EdgeBundleError | None] = queue.SimpleQueue()

    def pieces(self, *, wait: bool) -> Iterator[Arrived]:
        """What arrives; without ``wait``, what is here now.

        Raises:
            EdgeBundleError: what ended the run.
        """
        while True:
            try:
                found = self.arrived.get(wait)
            except queue.Empty:
                return
            if found is None:
                return
            if isinstance(found, EdgeBundleError):
                raise found
            yield found


class Lanes:
    """Every lane opens ``mirrors`` anew: a source serves one thread. ``parallel`` bounds the lanes."""

    def __init__(
        self,
        mirrors: Mirrors,
        parallel: int,
        *,
        bytes_per_second: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._mirrors = mirrors
        self._width = parallel
        self._bandwidth = Bandwidth(bytes_per_second)
        self._clock = clock
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._work: queue.SimpleQueue[_Delivery | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._whole_only = False

    def fetch(
        self, entry: FileEntry, runs: Sequence[Run], on_arrival: OnArrival = lambda count: None
    ) -> Iterator[Arrived]:
        """The pieces of ``runs`` in their order, each verified; ``on_arrival`` hears of their bytes before that, in any
        thread.

        When a run fails on every source, what has arrived of those behind it is handed over before the error is raised.

        Raises:
            SourceInvalid: DIGEST_MISMATCH, when every source delivers other bytes than were signed.
            SourceUnavailable: no source could deliver.
        """
        waiting, under_way = deque(runs), deque[_Delivery]()
        first = True
        while waiting or under_way:
            # The first run goes alone: a server without ranges sends all of the file, and once is enough.
            room = 1 if first or self._whole_only else self._width + RUNS_AHEAD
            while waiting and len(under_way) < room:
                under_way.append(self._begin(_Delivery(entry, waiting.popleft(), on_arrival)))
            head = under_way.popleft()
            try:
                for arrived in head.pieces(wait=True):
                    yield arrived
                    if first and not self._whole_only:
                        first = False
                        while waiting and len(under_way) < self._width + RUNS_AHEAD - 1:
                            under_way.append(self._begin(_Delivery(entry, waiting.popleft(), on_arrival)))
            except EdgeBundleError:
                for other in under_way:
                    yield from self._salvage(other)
                raise

    def _salvage(self, delivery: _Delivery) -> Iterator[Arrived]:
        try:
            yield from delivery.pieces(wait=False)
        except EdgeBundleError:
            return

    def close(self) -> None:
        """End the lanes; one that waits for a server ends when that answers or stalls for too long."""
        self._stopped.set()
        for _ in self._threads:
            self._work.put(None)

    def _begin(self, delivery: _Delivery) -> _Delivery:
        wanted = 1 if self._whole_only else self._width
        if len(self._threads) < wanted:
            # Daemons: a server that stalls must not keep an installer alive that has failed already.
            thread = threading.Thread(target=self._drive, name=f"lane {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._work.put(delivery)
        return delivery

    def _drive(self) -> None:
        mirrors = self._mirrors.again(self._bandwidth.piece_bytes)
        try:
            while (delivery := self._work.get()) is not None and not self._stopped.is_set():
                try:
                    self._deliver(delivery, mirrors)
                    delivery.arrived.put(None)
                except _Stopped:
                    return
                except EdgeBundleError as error:
                    delivery.arrived.put(error)
                except Exception as error:  # the consumer waits and must hear of it
                    failure = SourceUnavailable(f"fetching failed: {type(error).__name__}: {error}")
                    failure.__cause__ = error
                    delivery.arrived.put(failure)
        finally:
            mirrors.close()

    def _deliver(self, delivery: _Delivery, mirrors: Mirrors) -> None:
        """All of a run, going on where it broke off as long as every attempt brings at least one piece."""
        left: list[Run | None] = [delivery.run]
        while (run := left[0]) is not None:
            try:
                mirrors.first_working(partial(self._fetch_run, delivery, left))
            except SourceUnavailable:
                if left[0] == run:
                    raise

    def _fetch_run(self, delivery: _Delivery, left: list[Run | None], source: BundleSource) -> None:
        """Hand over what is ``left`` of a run from one source; what has arrived is taken off ``left``."""
        run = left[0]
        if run is None:
            return
        buffer = bytearray()
        pieces = iter(run.pieces)
        piece: Piece | None = next(pieces)
        for data in source.stream(object_path(delivery.entry.sha256), run.start, run.length):
            if self._stopped.is_set():
                raise _Stopped
            self._whole_only = self._whole_only or getattr(source, "whole_only", False)
            self._keep_pace(source, len(data))
            if not buffer and piece is not None and len(data) == piece.size:
                # The usual case of a large file: a piece of the plan is what the source delivers, nothing is copied.
                self._hand_over(delivery, left, piece, memoryview(data), source)
                piece = next(pieces, None)
                continue
            buffer += data
            if len(buffer) > 2 * MAX_CHUNK_BYTES:
                raise SourceUnavailable(f"{source.description} delivers larger pieces than agreed")
            taken = 0
            while piece is not None and len(buffer) - taken >= piece.size:
                chunk = memoryview(bytes(buffer[taken : taken + piece.size]))
                taken += piece.size
                self._hand_over(delivery, left, piece, chunk, source)
                piece = next(pieces, None)
            del buffer[:taken]
        if piece is not None or buffer:
            raise SourceUnavailable(f"{source.description} delivered another length than asked for")

    @staticmethod
    def _hand_over(
        delivery: _Delivery, left: list[Run | None], piece: Piece, chunk: memoryview, source: BundleSource
    ) -> None:
        if not matches(chunk, piece):
            raise BundleRefused(
                Reason.DIGEST_MISMATCH,
                f"{source.description} has other bytes for {delivery.entry.path} than were signed",
                field=delivery.entry.path,
            )
        delivery.on_arrival(piece.size)
        delivery.arrived.put((piece, chunk))
        left[0] = None if left[0] is None else after(left[0], piece)

    def _keep_pace(self, source: BundleSource, count: int) -> None:
        """The limit is for networks; a stick is read as fast as it can be."""
        if getattr(source, "is_remote", False):
            with self._lock:
                delay = self._bandwidth.delay(count, self._clock())
            if delay:
                self._sleep(delay)
