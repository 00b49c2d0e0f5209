"""What the packager keeps because it was dear to make: directories, each made once whoever asks at the same time.

Who has one keeps it for as long as it is :func:`using` the cache: what is removed meanwhile is removed afterwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from contract.system.durable import Disk
from contract.system.file_lock import open_lock, share_lock, take_lock, wait_for_lock

FORGOTTEN_SECONDS = 7 * 24 * 3600
"""A build that is still running is younger, and one that is to go on is tried again within days."""

_UNFINISHED = re.compile(r"\.(.+?)(?:\.[a-z0-9_]{8})?")
"""What is made under an entry's name, with what :mod:`tempfile` adds to it."""

_ENTRY = re.compile(r"\.?[0-9a-f]{32}(?![0-9a-f]).*")
"""The first half of a SHA-256 begins every name."""

_USED: ContextVar[dict[Path, int] | None] = ContextVar("used", default=None)
"""Entries that are in use here, each with the handle of its lock; None outside of :func:`using`."""


@contextlib.contextmanager
def using() -> Iterator[None]:
    """Keep what :func:`have` and :func:`hold` give until the block ends."""
    used: dict[Path, int] = {}
    before = _USED.set(used)
    try:
        yield
    finally:
        _USED.reset(before)
        for entry, handle in used.items():
            _let_go(entry, handle)


@contextlib.contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Wait until no other process makes, uses or drops ``entry``; the kernel lets go of it when its holder dies."""
    handle = _lock(entry, wait_for_lock)
    try:
        yield
    finally:
        _let_go(entry, handle)


def have(
    entry: Path, make: Callable[[Path], None], *, mark: str = ".", whole: Callable[[Path], bool] = Path.exists
) -> None:
    """Have ``entry``, as :func:`get_or_create` makes it, for as long as the cache is in use. ``whole`` tells whether
    one that is there can still be used.
    """
    while not hold(entry, mark=mark, whole=whole):
        with locked(entry):
            if entry.exists() and not whole(entry):
                shutil.rmtree(entry)
            get_or_create(entry, make, mark=mark)


def hold(entry: Path, *, mark: str = ".", whole: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether ``entry`` is there; then nobody removes it as long as the cache is in use."""
    used = _USED.get()
    if used is not None and entry in used:
        return True
    handle = _lock(entry, share_lock)
    there = (entry / mark).exists() and whole(entry)
    if there:
        os.utime(entry)  # when it was last used decides what goes first where there is too much
    if there and used is not None:
        used[entry] = handle
    else:
        _let_go(entry, handle)
    return there


def get_or_create(entry: Path, make: Callable[[Path], None], *, mark: str = ".") -> None:
    """Have ``entry``, a directory that ``make(staging)`` fills, unless ``entry/mark`` is there already.

    Only a whole one ever stands at ``entry``, and what ``make`` raises leaves nothing; nor does one that was killed
    before. To be called while :func:`locked`.
    """
    if (entry / mark).exists():
        os.utime(entry)
        return
    for path in list_unfinished(entry):
        shutil.rmtree(path, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        make(staging)
        staging.chmod(0o755)
        shutil.rmtree(entry, ignore_errors=True)
        put(staging, entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def put(made: Path, target: Path) -> None:
    """Rename a file or a directory into its place, its bytes first: after a power cut what stands there is whole.

    Raises:
        StoreFull, StoreBroken: the disk does not take it.
    """
    disk = Disk()
    for directory, _, names in os.walk(made, topdown=False):
        for path in (*(Path(directory, name) for name in names), Path(directory)):
            if not path.is_symlink():
                disk.sync_file(path)
    if made.is_file():
        disk.sync_file(made)
    disk.rename(made, target)


def forget_oldest(fresh: Path, kept: int) -> None:
    """Of the entries beside ``fresh`` keep it and those that were used last, ``kept`` in all; what is in use stays."""
    used: dict[Path, float] = {}
    for path in fresh.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
            if path != fresh and not path.name.startswith(".") and is_entry(path):
                used[path] = path.stat().st_mtime
    for path in sorted(used, key=lambda path: used[path], reverse=True)[kept - 1 :]:
        with contextlib.suppress(OSError):
            drop(path, wait=False)


def drop(path: Path, *, wait: bool = True) -> bool:
    """Remove an entry, or what was left of making one; False where another process uses it and is not waited for.

    Raises:
        OSError: it cannot be removed.
    """
    entry = owner_of(path)
    try:
        handle = _lock(entry, wait_for_lock if wait else _take)
    except BlockingIOError:
        return False
    try:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    finally:
        _let_go(entry, handle)
    return True


def list_unfinished(entry: Path) -> list[Path]:
    """What was left of making ``entry``, or is being made."""
    begun = (path for path in entry.parent.glob(".*") if path.name.startswith(f".{entry.name}.") and not is_lock(path))
    return [path for path in begun if owner_of(path) == entry]


def owner_of(path: Path) -> Path:
    """The entry that ``path`` is, or is to become."""
    found = _UNFINISHED.fullmatch(path.name)
    return path if found is None else path.with_name(found[1])


def is_entry(path: Path) -> bool:
    """Whether ``path`` is called like an entry, or what belongs to one. Anything else in a directory that somebody
    named as the cache is their own, like the ``checkpoints`` of a training.
    """
    return _ENTRY.fullmatch(path.name) is not None


def is_lock(path: Path) -> bool:
    """Whether ``path`` is the lock of an entry."""
    return path.name.startswith(".") and path.name.endswith(".lock")


def sweep(directory: Path, pattern: str = "*") -> None:
    """Remove what was left by builds that were killed outright, and entries that nobody came back for."""
    for path in filter(is_entry, directory.glob(pattern)):
        with contextlib.suppress(OSError):  # somebody else has removed it
            if time.time() - path.lstat().st_mtime > FORGOTTEN_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def _lock(entry: Path, take: Callable[[int], object]) -> int:
    """The handle of the lock of ``entry``, taken by ``take``; raises what that raises."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = open_lock(_lock_of(entry), 0o644)
        try:
            take(handle)
            if _is_there(entry, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        # Whoever held it has removed it meanwhile: what we locked is nobody's door any more.
        os.close(handle)


def _take(handle: int) -> None:
    if not take_lock(handle):
        raise BlockingIOError


def _is_there(entry: Path, handle: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return _lock_of(entry).stat().st_ino == os.fstat(handle).st_ino
    return False


def _let_go(entry: Path, handle: int) -> None:
    """Give the lock back; its file need not lie about where nobody else uses the entry."""
    with contextlib.suppress(OSError):
        if take_lock(handle) and _is_there(entry, handle):
            _lock_of(entry).unlink()
    os.close(handle)
