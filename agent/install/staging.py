"""Files of a bundle on their way into ``inbox/``: reserved in full, filled piece by piece, each piece verified.

Nothing here is believed because it is there: what an earlier attempt left is hashed before it counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from agent.install.following import Follower
from agent.install.plan import Piece, Place
from contract.durable import Disk
from contract.errors import StoreBroken
from contract.manifest import FileEntry


class Part:
    """One file on its way; ``path`` exists with its full size when this is constructed.

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
        self._follower = Follower(self._handle, entry.path)

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._follower.close()
        os.close(self._handle)

    def missing(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Those of ``pieces`` whose bytes are not here yet."""
        for piece in pieces:
            if matches(self._read(piece), piece):
                self._placed(piece.offset, piece.size)
            else:
                yield piece

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put verified bytes in their place; durable after :meth:`sync`."""
        self._disk.write_unsynced(self._handle, self.path, offset, data)
        self._placed(offset, len(data))

    def sync(self) -> None:
        self._disk.sync_file(self.path)

    def digest(self) -> str:
        """SHA-256 of the whole as it lies on the medium; once, after :meth:`sync`, when nothing is missing."""
        try:
            return self._follower.digest()
        except OSError as error:
            raise self._unreadable(error) from error

    def _placed(self, offset: int, size: int) -> None:
        """Let the follower go on as far as there is no hole."""
        self._ahead[offset] = size
        while size := self._ahead.pop(self._whole_until, 0):
            self._whole_until += size
        self._follower.reached(self._whole_until)

    def _read(self, piece: Piece) -> bytes:
        try:
            return os.pread(self._handle, piece.size, piece.offset)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> StoreBroken:
        return StoreBroken(f"{self.path} cannot be read: {error.strerror}")


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
