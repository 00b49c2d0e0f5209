"""Files of a bundle on their way into ``inbox/``: reserved in full, filled piece by piece, each piece verified.

Nothing here is believed because it is there: what an earlier attempt left is hashed before it counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from agent.install.plan import Piece, Place, pieces_of
from contract.durable import Disk
from contract.errors import StoreBroken
from contract.manifest import FileEntry

WRITEBACK_BYTES = 8 << 20
"""So much is written before the kernel is asked to begin with the flushing: at the end there is little left to do."""

READERS = 2
"""Threads that read a part back: one core's hashing is slower than memory."""


class Part:
    """One file on its way; ``path`` exists with its full size when this is constructed.

    ``written``: the digest of what this process wrote there, if it wrote all of it (see :attr:`written`).

    Raises:
        StoreBroken, StoreFull: from every method.
    """

    def __init__(self, path: Path, entry: FileEntry, disk: Disk, written: str | None = None) -> None:
        self.path = path
        self.entry = entry
        self._disk = disk
        self._known = written
        self._whole = hashlib.sha256()
        self._in_order = 0
        self._flushing = 0
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise StoreBroken(f"{path} cannot be opened: {error.strerror}") from error

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def missing(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Those of ``pieces`` whose bytes are not here yet."""
        for piece in pieces:
            if not matches(self._read(piece.offset, piece.size), piece):
                yield piece

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put verified bytes in their place; durable after :meth:`sync`."""
        self._disk.write_unsynced(self._handle, self.path, offset, data)
        if offset == self._in_order:
            self._whole.update(data)
            self._in_order += len(data)
            if self._in_order - self._flushing >= WRITEBACK_BYTES:
                # Of pages that are not on the medium yet, this only begins the writing.
                start, self._flushing = self._flushing, self._in_order
                os.posix_fadvise(self._handle, start, self._flushing - start, os.POSIX_FADV_DONTNEED)

    @property
    def written(self) -> str | None:
        """SHA-256 of the whole, if all of it was written here from the first byte to the last."""
        return self._whole.hexdigest() if self._in_order == self.entry.size else None

    def sync(self) -> None:
        self._disk.sync_file(self.path)

    def digest(self) -> str:
        """SHA-256 of the whole, read back.

        Where this process wrote all of it, every chunk is read and compared instead, by several threads: when each is
        what was written, so is the whole.
        """
        if self._known is not None and self._holds_all():
            return self._known
        whole = hashlib.sha256()
        offset = 0
        while piece := self._read(offset, 1 << 20):
            whole.update(piece)
            offset += len(piece)
        return whole.hexdigest()

    def _holds_all(self) -> bool:
        pieces = list(pieces_of(self.entry))
        shares = [pieces[number::READERS] for number in range(READERS)]
        with ThreadPoolExecutor(READERS) as readers:
            return all(readers.map(lambda share: not any(self.missing(share)), shares))

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._handle, size, offset)
        except OSError as error:
            raise StoreBroken(f"{self.path} cannot be read: {error.strerror}") from error


def matches(data: bytes | memoryview, piece: Piece) -> bool:
    """Whether ``data`` is what the manifest lists as ``piece``."""
    return len(data) == piece.size and hashlib.sha256(data).hexdigest() == piece.sha256


class LocalChunks:
    """Reads chunks out of bundles on this device; what does not verify there is as good as absent."""

    def __init__(self, index: dict[str, Place]) -> None:
        self._index = index
        self._open: tuple[Path, int] | None = None

    def read(self, piece: Piece) -> bytes | None:
        """The verified bytes of ``piece``, or None."""
        place = self._index.get(piece.sha256)
        if place is None:
            return None
        try:
            data = os.pread(self._handle(place.path), piece.size, place.offset)
        except OSError:
            # A bundle that rots must not keep its successor from being fetched.
            return None
        return data if matches(data, piece) else None

    def _handle(self, path: Path) -> int:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = (path, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None
