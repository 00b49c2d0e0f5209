"""A repository in one uncompressed tar, the ``.edgebundle`` file: for sticks and air-gapped devices."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from contract.errors import BundleRefused, SourceUnavailable
from contract.identifiers import check_path
from contract.reasons import Reason
from contract.source.directory import PIECE_BYTES
from contract.source.tar_index import index_members


class TarSource:
    """Reads members in place, nothing is ever extracted; the headers are read once, at construction.

    Raises:
        SourceUnavailable: the file cannot be opened or read.
        BundleRefused: TAR_INVALID.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceUnavailable(f"{path} cannot be opened: {error.strerror or error}") from error
        self._handle = handle
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise SourceUnavailable(f"{path} is not a regular file")
            self._members = index_members(self._read_at, status.st_size)
        except BaseException:
            self.close()
            raise

    @property
    def description(self) -> str:
        return str(self._path)

    @property
    def members(self) -> list[str]:
        """Names of all members, in their order."""
        return list(self._members)

    def read(self, path: str, max_bytes: int) -> bytes | None:
        self._check_open()
        member = self._members.get(str(check_path(path)))
        if member is None:
            return None
        if member.size > max_bytes:
            raise BundleRefused(Reason.TOO_LARGE, f"{path} is longer than the {max_bytes} bytes allowed")
        return b"".join(self.stream(path, 0, member.size))

    def stream(self, path: str, start: int, length: int) -> Iterator[bytes]:
        self._check_open()
        member = self._members.get(str(check_path(path)))
        if member is None:
            raise SourceUnavailable(f"{self.description} has no {path}")
        if start + length > member.size:
            raise SourceUnavailable(f"{path} in {self.description} ends early")
        while length:
            piece = self._read_at(member.offset + start, min(PIECE_BYTES, length))
            if not piece:
                raise SourceUnavailable(f"{self.description} became shorter while it was read")
            start += len(piece)
            length -= len(piece)
            yield piece

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _check_open(self) -> None:
        if self._handle is None:
            raise SourceUnavailable(f"{self.description} was closed")

    def _read_at(self, offset: int, length: int) -> bytes:
        if self._handle is None:
            raise SourceUnavailable(f"{self.description} was closed")
        try:
            return os.pread(self._handle, length, offset)
        except OSError as error:
            raise SourceUnavailable(f"{self.description} cannot be read: {error.strerror or error}") from error
