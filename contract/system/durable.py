"""Writing so that it survives a power cut: the one place that does it.

Everything that installation and activation do to files goes through a :class:`Disk`, and everything else they do
(database commits, processes) through the same :class:`Effects`, so that a test can number each effect and cut the
power before and after every one.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from contract.errors import StoreBroken, StoreFull

T = TypeVar("T")


class Effects:
    """The door every effect passes; tests put their own in its place to count, fail or kill."""

    def perform(self, kind: str, target: str, action: Callable[[], T]) -> T:
        """Run ``action``; ``kind`` (``write``, ``rename``, ``commit`` …) and ``target`` identify it to a test."""
        return action()


def translate(error: OSError, doing: str) -> StoreFull | StoreBroken:
    """Our error for the operating system's: full disks are retried otherwise than broken ones."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"no space left while {doing}")
    return StoreBroken(f"{doing} failed: {error.strerror or error}")


class Disk:
    """File-system effects, each durable when it returns unless its name says otherwise.

    Every method raises :class:`StoreFull` or :class:`StoreBroken`, the cause chained, and nothing else.
    """

    def __init__(self, effects: Effects | None = None) -> None:
        self.effects = effects or Effects()

    def _perform(self, kind: str, target: Path, action: Callable[[], T]) -> T:
        try:
            return self.effects.perform(kind, str(target), action)
        except OSError as error:
            raise translate(error, f"{kind} {target}") from error

    def make_directory(self, path: Path, mode: int = 0o755) -> None:
        """Create ``path`` and its parents; existing ones are kept."""

        def action() -> None:
            missing = [path]
            while not missing[-1].exists():
                missing.append(missing[-1].parent)
            for directory in reversed(missing[:-1]):
                directory.mkdir(mode=mode, exist_ok=True)
                _fsync_path(directory.parent)

        self._perform("mkdir", path, action)

    def write_file(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Replace ``path`` atomically: temporary file beside it, fsync, rename, fsync of the directory."""

        def action() -> None:
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fchmod(file.fileno(), mode)
                    os.fsync(file.fileno())
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _fsync_path(path.parent)

        self._perform("write", path, action)

    def append(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Add ``data`` to the end of ``path``, which is made if it is missing; flushed."""

        def action() -> None:
            fresh = not path.exists()
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
            finally:
                os.close(handle)
            if fresh:
                _fsync_path(path.parent)

        self._perform("append", path, action)

    def sync_file(self, path: Path) -> None:
        """Flush the contents of ``path``."""
        self._perform("fsync", path, lambda: _fsync_path(path))

    def rename(self, old: Path, new: Path) -> None:
        """Rename within one file system and flush both directories; an existing file ``new`` is replaced."""

        def action() -> None:
            old.replace(new)
            _fsync_path(new.parent)
            if old.parent != new.parent:
                _fsync_path(old.parent)

        self._perform("rename", new, action)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole tree, sealed or not; missing is fine."""

        def action() -> None:
            if path.is_symlink() or path.is_file():
                path.unlink(missing_ok=True)
            elif path.exists():
                for directory, _, _ in os.walk(path):
                    Path(directory).chmod(0o700)
                shutil.rmtree(path)
            else:
                return
            _fsync_path(path.parent)

        self._perform("remove", path, action)

    def allocate(self, path: Path, size: int) -> None:
        """Make ``path`` exactly ``size`` bytes that really exist on the disk, keeping what is there.

        Its name is durable then; what is written into it is after :meth:`sync_file`.
        """

        def action() -> None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if size:
                    os.posix_fallocate(handle, 0, size)
                os.ftruncate(handle, size)
            finally:
                os.close(handle)
            _fsync_path(path.parent)

        self._perform("allocate", path, action)

    def link(self, old: Path, new: Path) -> None:
        """Give a file that is never written again a second name; flush the directory of the new one."""

        def action() -> None:
            new.hardlink_to(old)
            _fsync_path(new.parent)

        self._perform("link", new, action)

    def set_mode(self, path: Path, mode: int) -> None:
        """Change permissions, and flush them."""

        def action() -> None:
            path.chmod(mode)
            _fsync_path(path)

        self._perform("chmod", path, action)

    def write_unsynced(self, handle: int, path: Path, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` into an open file of ours at ``offset``; not durable before :meth:`sync_file`."""

        def action() -> None:
            view, at = memoryview(data), offset
            while view:
                written = os.pwrite(handle, view, at)
                view, at = view[written:], at + written

        self._perform("pwrite", path, action)


def _fsync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
