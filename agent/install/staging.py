"""Partial downloads in ``inbox/``: reserved in full, filled chunk by chunk, each chunk verified.

Nothing is trusted because it exists: what an earlier attempt left is hashed before it counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from agent.install.fetch_plan import ChunkSlice, Location
from agent.install.flush_hasher import FlushHasher
from contract.bundle.manifest import FileEntry
from contract.errors import StoreBroken
from contract.system.durable import Disk


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


def matches(data: bytes | memoryview, chunk_slice: ChunkSlice) -> bool:
    """Whether ``data`` is what the manifest lists as ``chunk_slice``."""
    return len(data) == chunk_slice.size and hashlib.sha256(data).hexdigest() == chunk_slice.sha256


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
