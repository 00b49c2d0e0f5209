"""Partial downloads in ``inbox/``: reserved in full, filled chunk by chunk from what earlier attempts left, what other
bundles here have and the sources, each chunk verified; hashed as a whole meanwhile.

Nothing is trusted because it exists: what an earlier attempt left is hashed before it counts.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from agent.install.download.fetch_plan import ChunkSlice, Location, matches, plan_ranges, slices_of
from agent.install.download.parallel_fetch import ParallelFetcher
from agent.install.download.progress import ProgressMeter
from contract.bundle.manifest import FileEntry
from contract.errors import StoreBroken
from contract.system.durable import Disk

READ_BYTES = 1 << 20

WINDOW_BYTES = 8 << 20
"""So much is flushed at a time: still in the processor's reach when it is read back, and little is left at the end."""


class FlushHasher:
    """A file flushed, read back and hashed as a whole while it is being filled.

    A thread of its own: neither flushing nor the digest of one file can be shared out, so on two cores both must not
    wait until the last byte has come. It hashes the first bytes of the file at ``handle`` as far as :meth:`reached`
    reports that they are there, and reads them back only when they have been flushed. ``handle`` stays the caller's
    and must be open until :meth:`digest` or :meth:`close` has returned.
    """

    def __init__(self, handle: int, name: str) -> None:
        self._handle = handle
        self._reached = 0
        self._ended = False
        self._failure: OSError | None = None
        self._whole = hashlib.sha256()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"flush hasher of {name}", daemon=True)
        self._thread.start()

    def reached(self, offset: int) -> None:
        """Everything before ``offset`` is in its place now."""
        with self._changed:
            self._reached = offset
            self._changed.notify()

    def digest(self) -> str:
        """SHA-256 of what lies before the offset reached last, which the caller has flushed; ends the thread.

        Raises:
            OSError: it could not be read back.
        """
        self._end(self._reached)
        if self._failure is not None:
            raise self._failure
        return self._whole.hexdigest()

    def close(self) -> None:
        """End the thread without a digest."""
        self._end(0)

    def _end(self, reached: int) -> None:
        with self._changed:
            self._reached, self._ended = reached, True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        done = 0
        # One buffer for all of it: a new one for every read would cost as much as the copying.
        buffer = memoryview(bytearray(READ_BYTES))
        try:
            while True:
                with self._changed:
                    while self._reached - done < WINDOW_BYTES and not self._ended:
                        self._changed.wait()
                    end, flushed = self._reached, self._ended
                if end <= done:
                    return
                if not flushed:
                    os.fdatasync(self._handle)
                while done < end:
                    count = os.preadv(self._handle, [buffer[: min(READ_BYTES, end - done)]], done)
                    if count == 0:
                        # Shorter than it was: its digest will tell.
                        return
                    self._whole.update(buffer[:count])
                    done += count
        except OSError as error:
            self._failure = error


class Part:
    """One file being downloaded; ``path`` exists with its full size when this is constructed.

    Raises:
        StoreBroken, StoreFull: from every method.
    """

    def __init__(self, path: Path, entry: FileEntry, disk: Disk) -> None:
        self.path = path
        self.entry = entry
        self._disk = disk
        self._ahead: dict[int, int] = {}
        self._whole_until = 0
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise StoreBroken(f"{path} cannot be opened: {error.strerror}") from error
        self._hasher = FlushHasher(self._handle, entry.path)

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hasher.close()
        os.close(self._handle)

    def missing(self, slices: Iterable[ChunkSlice]) -> Iterator[ChunkSlice]:
        """Those of ``slices`` whose bytes are not in the file yet."""
        for chunk_slice in slices:
            if matches(self._read(chunk_slice), chunk_slice):
                self._placed(chunk_slice.offset, chunk_slice.size)
            else:
                yield chunk_slice

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put verified bytes in their place; durable after :meth:`sync`."""
        self._disk.write_unsynced(self._handle, self.path, offset, data)
        self._placed(offset, len(data))

    def sync(self) -> None:
        self._disk.sync_file(self.path)

    def digest(self) -> str:
        """SHA-256 of the whole as it lies on the medium; once, after :meth:`sync`, when nothing is missing."""
        try:
            return self._hasher.digest()
        except OSError as error:
            raise self._unreadable(error) from error

    def _placed(self, offset: int, size: int) -> None:
        """Let the hasher go on as far as there is no gap."""
        self._ahead[offset] = size
        while size := self._ahead.pop(self._whole_until, 0):
            self._whole_until += size
        self._hasher.reached(self._whole_until)

    def _read(self, chunk_slice: ChunkSlice) -> bytes:
        try:
            return os.pread(self._handle, chunk_slice.size, chunk_slice.offset)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> StoreBroken:
        return StoreBroken(f"{self.path} cannot be read: {error.strerror}")


class LocalChunks:
    """Reads chunks out of bundles on this device; what does not verify there is as good as absent."""

    def __init__(self, index: dict[str, Location]) -> None:
        self._index = index
        self._open: tuple[Path, int] | None = None

    def read(self, chunk_slice: ChunkSlice) -> bytes | None:
        """The verified bytes of ``chunk_slice``, or None."""
        local = self._index.get(chunk_slice.sha256)
        if local is None:
            return None
        try:
            data = os.pread(self._handle(local.path), chunk_slice.size, local.offset)
        except OSError:
            # A damaged bundle must not keep its successor from being fetched.
            return None
        return data if matches(data, chunk_slice) else None

    def _handle(self, path: Path) -> int:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = (path, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


def fill_part(
    path: Path,
    entry: FileEntry,
    *,
    resumed: bool,
    local: LocalChunks,
    fetcher: ParallelFetcher,
    meter: ProgressMeter,
    disk: Disk,
) -> str:
    """Make the part at ``path`` complete and durable; ``resumed``: an earlier attempt may have left bytes in it.

    Returns the SHA-256 of the whole, read back from there.

    Raises:
        SourceInvalid: DIGEST_MISMATCH, when every source delivers other bytes than were signed.
        SourceUnavailable: the sources failed; what was written stays and is found by the next attempt.
        StoreBroken, StoreFull: this disk failed.
    """
    with Part(path, entry, disk) as part:
        slices = list(slices_of(entry))
        missing = list(_find_missing(part, slices, meter)) if resumed else slices
        missing = list(_reuse(part, missing, local, meter))
        todo = {chunk_slice.offset for chunk_slice in missing}
        try:
            for chunk_slice, data in fetcher.fetch(entry, plan_ranges(slices, todo), meter.arrived):
                part.write(chunk_slice.offset, data)
                meter.fetched(chunk_slice.size, again=0 if chunk_slice.offset in todo else chunk_slice.size)
                todo.discard(chunk_slice.offset)
        finally:
            # What has arrived is worth keeping even if the rest does not come.
            part.sync()
        return part.digest()


def _find_missing(part: Part, slices: Sequence[ChunkSlice], meter: ProgressMeter) -> Iterator[ChunkSlice]:
    """Tells as it goes: hashing what an earlier attempt left of a large file takes its time."""
    for chunk_slice in slices:
        if any(part.missing([chunk_slice])):
            yield chunk_slice
        else:
            meter.found(chunk_slice.size)


def _reuse(part: Part, missing: Sequence[ChunkSlice], local: LocalChunks, meter: ProgressMeter) -> Iterator[ChunkSlice]:
    for chunk_slice in missing:
        data = local.read(chunk_slice)
        if data is None:
            yield chunk_slice
        else:
            part.write(chunk_slice.offset, data)
            meter.reused(chunk_slice.size)
