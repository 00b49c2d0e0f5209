"""What the packager keeps because it was dear to make: directories, each made once whoever asks at the same time."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from contract.system.file_lock import open_lock, wait_for_lock

FORGOTTEN_SECONDS = 7 * 24 * 3600
"""A build that is still running is younger, and one that is to go on is tried again within days."""


@contextlib.contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Wait until no other process makes, reads or drops ``entry``; the kernel lets go of it when its holder dies."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    path = entry.with_name(f".{entry.name}.lock")
    handle = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    while True:
        handle = open_lock(path, 0o644)
        wait_for_lock(handle)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        # Whoever held it has removed it meanwhile: what we locked is nobody's door any more.
        os.close(handle)


def get_or_create(entry: Path, make: Callable[[Path], None], *, mark: str = ".") -> None:
    """Have ``entry``, a directory that ``make(staging)`` fills, unless ``entry/mark`` is there already.

    Only a whole one ever stands at ``entry``, and what ``make`` raises leaves nothing. To be called while
    :func:`locked`.
    """
    if (entry / mark).exists():
        os.utime(entry)  # when it was last used decides what goes first where there is too much
        return
    staging = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        make(staging)
        staging.chmod(0o755)
        shutil.rmtree(entry, ignore_errors=True)
        staging.rename(entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sweep(directory: Path, pattern: str = "*") -> None:
    """Remove what was left by builds that were killed outright, and entries that nobody came back for."""
    for path in directory.glob(pattern):
        if time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
