"""One process at a time: an advisory lock that the kernel releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from contract.errors import StoreBroken
from contract.reasons import Reason

POLL_SECONDS = 0.05


class FileLock:
    """Held from construction to ``close``. ``what`` names the holder in the error of whoever comes second.

    Raises:
        StoreBroken: STATE_LOCKED when another process holds it for longer than ``wait_seconds``.
    """

    def __init__(self, path: Path, what: str, *, wait_seconds: float = 0.0) -> None:
        try:
            # Not inherited: a child that outlives us must not keep the lock.
            self._handle = _open(path)
        except OSError as error:
            raise StoreBroken(f"{path} cannot be opened: {error.strerror}") from error
        end = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    os.close(self._handle)
                    raise StoreBroken(
                        f"{what} is already using {path.parent}; stop it first", reason=Reason.STATE_LOCKED
                    ) from error
            except OSError as error:
                os.close(self._handle)
                raise StoreBroken(f"{path} cannot be locked: {error.strerror}") from error
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        os.close(self._handle)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EIO):
            raise
        # It is only held, never written: one that is there can be held on a disk that can only be read.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock at ``path`` now."""
    if not path.exists():
        return False
    try:
        FileLock(path, "somebody").close()
    except StoreBroken as error:
        return error.reason is Reason.STATE_LOCKED
    return False
