"""Several ranges of one file fetched in parallel, yielded verified and in the order of the plan.

The fetching threads only read and hash; everything that touches the disk stays with the consumer, so that the order of
effects does not depend on which thread was faster. What waits to be consumed is bounded by ``parallel + RANGES_AHEAD``
ranges.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from agent.install.download.fetch_plan import ByteRange, ChunkSlice, matches, remainder_after
from agent.install.download.mirrors import Mirrors
from agent.install.ports import Clock
from contract.bundle.layout import object_path
from contract.bundle.manifest import MAX_CHUNK_BYTES, FileEntry
from contract.errors import BundleRefused, EdgeBundleError, SourceUnavailable
from contract.reasons import Reason
from contract.source import BundleSource

RANGES_AHEAD = 2
"""Ranges that may be finished while the one before them is not: a slow range must not idle the other threads."""

VerifiedSlice = tuple[ChunkSlice, memoryview]
OnArrival = Callable[[int], None]

BURST_SECONDS = 0.5
"""What may come at once after a pause: enough for a small file, too little to be felt by the rest of the network."""

MIN_READ_BYTES = 16 << 10
MAX_READ_BYTES = 1 << 20


class Bandwidth:
    """How long to wait so that a download stays below its limit: a token bucket over bytes that have arrived.

    Pure: the clock is handed in. ``bytes_per_second`` 0 means no limit.
    """

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free_at = float("-inf")

    @property
    def read_bytes(self) -> int:
        """How much to read at a time: small enough that a slow limit does not turn into long silences."""
        if not self._rate:
            return MAX_READ_BYTES
        return max(MIN_READ_BYTES, min(MAX_READ_BYTES, self._rate // 4))

    def delay(self, count: int, now: float) -> float:
        """``count`` bytes arrived at ``now`` (monotonic seconds): how many seconds to wait before reading on."""
        if not self._rate:
            return 0.0
        self._free_at = max(self._free_at, now - BURST_SECONDS) + count / self._rate
        return max(0.0, self._free_at - now)


class _Stopped(Exception):
    """The fetcher was closed: the range is not needed any more."""


class _RangeFetch:
    """One range being fetched: chunk slices, then None or the error that ended it."""

    def __init__(self, entry: FileEntry, byte_range: ByteRange, on_arrival: OnArrival) -> None:
        self.entry = entry
        self.byte_range = byte_range
        self.on_arrival = on_arrival
        self.arrived: queue.SimpleQueue[VerifiedSlice | EdgeBundleError | None] = queue.SimpleQueue()

    def slices(self, *, wait: bool) -> Iterator[VerifiedSlice]:
        """What arrives; without ``wait``, what has arrived already.

        Raises:
            EdgeBundleError: what ended the range.
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


class ParallelFetcher:
    """Every thread opens ``mirrors`` again: a source serves one thread. ``parallel`` is the number of threads."""

    def __init__(
        self,
        mirrors: Mirrors,
        parallel: int,
        *,
        bytes_per_second: int = 0,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._mirrors = mirrors
        self._width = parallel
        self._bandwidth = Bandwidth(bytes_per_second)
        self._clock = clock
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._work: queue.SimpleQueue[_RangeFetch | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._whole_only = False

    def fetch(
        self, entry: FileEntry, ranges: Sequence[ByteRange], on_arrival: OnArrival = lambda count: None
    ) -> Iterator[VerifiedSlice]:
        """The chunk slices of ``ranges`` in their order, each verified; ``on_arrival`` is called before that with
        the count of their bytes, in any thread.

        When a range fails on every source, what has arrived of those behind it is yielded before the error is raised.

        Raises:
            SourceInvalid: DIGEST_MISMATCH, when every source delivers other bytes than were signed.
            SourceUnavailable: no source could deliver.
        """
        waiting, under_way = deque(ranges), deque[_RangeFetch]()
        first = True
        while waiting or under_way:
            # The first range goes alone: a server without ranges sends all of the file, and once is enough.
            room = 1 if first or self._whole_only else self._width + RANGES_AHEAD
            while waiting and len(under_way) < room:
                under_way.append(self._begin(_RangeFetch(entry, waiting.popleft(), on_arrival)))
            head = under_way.popleft()
            try:
                for arrived in head.slices(wait=True):
                    yield arrived
                    if first and not self._whole_only:
                        first = False
                        while waiting and len(under_way) < self._width + RANGES_AHEAD - 1:
                            under_way.append(self._begin(_RangeFetch(entry, waiting.popleft(), on_arrival)))
            except EdgeBundleError:
                for other in under_way:
                    yield from self._salvage(other)
                raise

    def _salvage(self, fetch: _RangeFetch) -> Iterator[VerifiedSlice]:
        try:
            yield from fetch.slices(wait=False)
        except EdgeBundleError:
            return

    def close(self) -> None:
        """End the threads; one that waits for a server ends when that answers or stalls for too long."""
        self._stopped.set()
        for _ in self._threads:
            self._work.put(None)

    def _begin(self, fetch: _RangeFetch) -> _RangeFetch:
        needed = 1 if self._whole_only else self._width
        if len(self._threads) < needed:
            # Daemons: a server that stalls must not keep an installer alive that has failed already.
            thread = threading.Thread(target=self._run_thread, name=f"fetch {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._work.put(fetch)
        return fetch

    def _run_thread(self) -> None:
        mirrors = self._mirrors.reopened(self._bandwidth.read_bytes)
        try:
            while (fetch := self._work.get()) is not None and not self._stopped.is_set():
                try:
                    self._fetch_all(fetch, mirrors)
                    fetch.arrived.put(None)
                except _Stopped:
                    return
                except EdgeBundleError as error:
                    fetch.arrived.put(error)
                except Exception as error:  # the consumer waits and must hear of it
                    failure = SourceUnavailable(f"fetching failed: {type(error).__name__}: {error}")
                    failure.__cause__ = error
                    fetch.arrived.put(failure)
        finally:
            mirrors.close()

    def _fetch_all(self, fetch: _RangeFetch, mirrors: Mirrors) -> None:
        """All of a range, resumed where it broke off as long as every attempt brings at least one chunk slice."""
        left: list[ByteRange | None] = [fetch.byte_range]
        while (byte_range := left[0]) is not None:
            try:
                mirrors.first_working(partial(self._fetch_from, fetch, left))
            except SourceUnavailable:
                if left[0] == byte_range:
                    raise

    def _fetch_from(self, fetch: _RangeFetch, left: list[ByteRange | None], source: BundleSource) -> None:
        """Fetch what is ``left`` of a range from one source; what has arrived is taken off ``left``."""
        byte_range = left[0]
        if byte_range is None:
            return
        buffer = bytearray()
        slices = iter(byte_range.slices)
        chunk_slice: ChunkSlice | None = next(slices)
        for data in source.stream(object_path(fetch.entry.sha256), byte_range.start, byte_range.length):
            if self._stopped.is_set():
                raise _Stopped
            self._whole_only = self._whole_only or getattr(source, "whole_only", False)
            self._limit_bandwidth(source, len(data))
            if not buffer and chunk_slice is not None and len(data) == chunk_slice.size:
                # The usual case of a large file: a chunk slice is what the source delivers, nothing is copied.
                self._hand_over(fetch, left, chunk_slice, memoryview(data), source)
                chunk_slice = next(slices, None)
                continue
            buffer += data
            if len(buffer) > 2 * MAX_CHUNK_BYTES:
                raise SourceUnavailable(f"{source.description} delivers larger chunks than agreed")
            taken = 0
            while chunk_slice is not None and len(buffer) - taken >= chunk_slice.size:
                chunk = memoryview(bytes(buffer[taken : taken + chunk_slice.size]))
                taken += chunk_slice.size
                self._hand_over(fetch, left, chunk_slice, chunk, source)
                chunk_slice = next(slices, None)
            del buffer[:taken]
        if chunk_slice is not None or buffer:
            raise SourceUnavailable(f"{source.description} delivered a different length than requested")

    @staticmethod
    def _hand_over(
        fetch: _RangeFetch,
        left: list[ByteRange | None],
        chunk_slice: ChunkSlice,
        chunk: memoryview,
        source: BundleSource,
    ) -> None:
        if not matches(chunk, chunk_slice):
            raise BundleRefused(
                Reason.DIGEST_MISMATCH,
                f"{source.description} has other bytes for {fetch.entry.path} than were signed",
                field=fetch.entry.path,
            )
        fetch.on_arrival(chunk_slice.size)
        fetch.arrived.put((chunk_slice, chunk))
        left[0] = None if left[0] is None else remainder_after(left[0], chunk_slice)

    def _limit_bandwidth(self, source: BundleSource, count: int) -> None:
        """The limit is for networks; a stick is read as fast as it can be."""
        if getattr(source, "is_remote", False):
            with self._lock:
                delay = self._bandwidth.delay(count, self._clock())
            if delay:
                self._sleep(delay)
