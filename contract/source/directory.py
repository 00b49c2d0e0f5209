"""A repository in a directory: a mounted stick, a network file system, the packager's own output."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from contract.errors import BundleRefused, SourceUnavailable
from contract.identifiers import path_below
from contract.reasons import Reason

PIECE_BYTES = 2**20
"""Bytes a ``stream`` delivers at a time: the largest chunk of a bundle."""


class DirectorySource:
    """Reads regular files below ``path``; links that lead out of it, pipes and devices are refused.

    Raises:
        SourceUnavailable: ``path`` is not a directory.
    """

    def __init__(self, path: Path) -> None:
        self._root = path
        self._closed = False
        self._check_usable()

    @property
    def description(self) -> str:
        return str(self._root)

    def read(self, path: str, max_bytes: int) -> bytes | None:
        handle = self._open(path)
        if handle is None:
            return None
        try:
            with os.fdopen(handle, "rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise self._unavailable(path, error) from error
        if len(data) > max_bytes:
            raise BundleRefused(Reason.TOO_LARGE, f"{path} is longer than the {max_bytes} bytes allowed")
        return data

    def stream(self, path: str, start: int, length: int) -> Iterator[bytes]:
        handle = self._open(path)
        if handle is None:
            raise SourceUnavailable(f"{self.description} has no {path}")
        try:
            while length:
                try:
                    piece = os.pread(handle, min(PIECE_BYTES, length), start)
                except OSError as error:
                    raise self._unavailable(path, error) from error
                if not piece:
                    raise SourceUnavailable(f"{path} in {self.description} ends early")
                start += len(piece)
                length -= len(piece)
                yield piece
        finally:
            os.close(handle)

    def close(self) -> None:
        self._closed = True

    def _check_usable(self) -> None:
        if self._closed:
            raise SourceUnavailable(f"{self.description} was closed")
        if not self._root.is_dir():
            # A stick that was pulled out must not look like a repository without newer metadata.
            raise SourceUnavailable(f"{self.description} is not a directory")

    def _open(self, path: str) -> int | None:
        self._check_usable()
        target = path_below(self._root, path)
        try:
            # O_NONBLOCK: opening a pipe would wait for a writer that never comes.
            handle = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unavailable(path, error) from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise BundleRefused(Reason.UNSAFE_PATH, f"{path} in {self.description} is not a regular file")
        return handle

    def _unavailable(self, path: str, error: OSError) -> SourceUnavailable:
        return SourceUnavailable(f"{path} in {self.description} cannot be read: {error.strerror or error}")
