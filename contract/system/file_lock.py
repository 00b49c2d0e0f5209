"""One process at a time, or several that share: a lock on a file or a directory, which the kernel gives back when its
holder dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


def open_lock(path: Path, mode: int = 0o600) -> int:
    """A handle of the lock file ``path``, made with ``mode`` if it is not there; closing it gives the lock back. Not
    inherited: a child that outlives us must not keep it.

    Raises:
        OSError: it can be neither made nor opened.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EIO):
            raise
        # It is only held, never written: one that is there can be held on a disk that can only be read.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def wait_for_lock(handle: int) -> None:
    """Take the lock, however long another process holds it. Raises OSError."""
    fcntl.flock(handle, fcntl.LOCK_EX)


def share_lock(handle: int) -> None:
    """Take the lock together with whoever shares it, however long a process holds it that does not. Raises OSError."""
    fcntl.flock(handle, fcntl.LOCK_SH)


def take_lock(handle: int) -> bool:
    """Take the lock, unless another process holds it. Raises OSError."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
