"""Memory limits of the control groups that this process is in, of version 1 and 2, as the kernel's files tell them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
ROOT = Path("/sys/fs/cgroup")

FILES_OF_2 = ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))
FILES_OF_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
"""Limit, use, and what of that the kernel takes back when it is needed, in ``memory.stat``."""


def memory_limits(proc: Path = PROC, root: Path = ROOT) -> list[tuple[int, int]]:
    """(limit, used) of this process's group and of all above it that have a limit.

    Used is without what the kernel takes back when it is needed: all file cache, as in ``MemAvailable``. After an
    installation the group of the agent and its workers is full of it to the limit.
    """
    found: list[tuple[int, int]] = []
    for base, group, files in _hierarchies(proc, root):
        for directory in (group, *group.parents):
            if not directory.is_relative_to(base):
                break
            limit = _limit(directory, *files)
            if limit is not None:
                found.append(limit)
    return found


def _hierarchies(proc: Path, root: Path) -> Iterator[tuple[Path, Path, tuple[str, str, tuple[str, ...]]]]:
    """Where the kernel counts this process's memory: the hierarchy's root, the group, and what its files are called."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if not controllers:
            yield root, root / path.strip("/"), FILES_OF_2
        elif "memory" in controllers.split(","):
            base = root / "memory"
            yield base, base / path.strip("/"), FILES_OF_1


def _limit(directory: Path, most: str, taken: str, reclaimable: tuple[str, ...]) -> tuple[int, int] | None:
    """None without a limit. Version 1 has a number as large as memory could ever be there, which is harmless."""
    try:
        limit = (directory / most).read_text().strip()
        used = int((directory / taken).read_text())
        facts = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        free = sum(int(facts.get(key, 0)) for key in reclaimable)
    except (OSError, ValueError):
        return None
    return (int(limit), max(0, used - free)) if limit.isdigit() else None
