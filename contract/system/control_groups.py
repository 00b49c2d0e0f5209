"""Limits of the control groups that this process is in, of version 1 and 2, as the kernel's files tell them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
ROOT = Path("/sys/fs/cgroup")

FILES_OF_2 = ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))
FILES_OF_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
"""Limit, use, and what of that the kernel takes back when it is needed, in ``memory.stat``."""

QUOTA_OF_1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def memory_limits(proc: Path = PROC, root: Path = ROOT) -> list[tuple[int, int]]:
    """(limit, used) of this process's group and of all above it that have a limit.

    Used is without what the kernel takes back when it is needed: all file cache, as in ``MemAvailable``. After an
    installation the group of the agent and its workers is full of it to the limit.
    """
    found = (
        _limit(directory, *(FILES_OF_2 if second else FILES_OF_1))
        for directory, second in _groups("memory", proc, root)
    )
    return [limit for limit in found if limit is not None]


def cpu_limit(proc: Path = PROC, root: Path = ROOT) -> float | None:
    """The tightest CPU quota of this process's group and of all above it, in cores; None without one."""
    found = (_quota(directory, second=second) for directory, second in _groups("cpu", proc, root))
    return min((cores for cores in found if cores is not None), default=None)


def _groups(controller: str, proc: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """This process's group and all above it, where the kernel keeps its files for ``controller``; whether of version 2.

    Both versions may be there at once: then one of them has the controller, and the other has no such files.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        group = base / path.strip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(base):
                break
            yield directory, not controllers


def _quota(directory: Path, *, second: bool) -> float | None:
    """None without a quota, which is ``max`` in version 2 and -1 in version 1."""
    try:
        if second:
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota, period = ((directory / name).read_text().strip() for name in QUOTA_OF_1)
        return int(quota) / int(period) if quota.isdigit() and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


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
