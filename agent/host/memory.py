"""How much memory there is: this machine's, or what a control group leaves, as the kernel counts it.

The kernel counts the file cache as available, and with it weights that a process has mapped and reads for every token.
Who plans with :func:`available_memory` leaves those out: see :func:`mapped_bytes`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from contract.errors import StoreBroken

_MEMINFO = Path("/proc/meminfo")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def total_memory() -> int:
    """RAM that this process and its workers may use: the machine's, or less where a control group says so."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in _cgroup_limits())])


def available_memory() -> int:
    """RAM that a new process could use now without swapping, control groups respected."""
    rooms = [limit - used for limit, used in _cgroup_limits()]
    return max(0, min([_meminfo("MemAvailable"), *rooms]))


def mapped_bytes(folders: Iterable[Path]) -> int:
    """How much of the files in ``folders`` this process has mapped: its weights, whether they are in memory already or
    not.
    """
    prefixes = [f"{folder.resolve()}/" for folder in folders]
    mapped = 0
    for line in Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines():
        span, *_, path = line.split(maxsplit=5)
        if any(path.startswith(prefix) for prefix in prefixes):
            start, _, end = span.partition("-")
            mapped += int(end, 16) - int(start, 16)
    return mapped


def own_anonymous_bytes() -> int:
    """What this process has in memory that is no file's, and that is free once it ends."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text("ascii").split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _meminfo(key: str) -> int:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", _MEMINFO.read_text("ascii"), re.MULTILINE)
    except OSError as error:
        raise StoreBroken(f"{_MEMINFO} cannot be read: {error.strerror}") from error
    if found is None:
        raise StoreBroken(f"{_MEMINFO} has no {key}")
    return int(found[1]) * 1024


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, used) of every control group (v2) above this process that has a limit.

    Used is without what the kernel takes back when it is needed: all file cache, as in ``MemAvailable``. After an
    installation the group of the agent and its workers is full of it to the limit.
    """
    limits: list[tuple[int, int]] = []
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return limits
    group = _CGROUP_ROOT / line.removeprefix("0::").strip("/")
    for directory in (group, *group.parents):
        if not directory.is_relative_to(_CGROUP_ROOT):
            break
        try:
            limit = (directory / "memory.max").read_text().strip()
            used = int((directory / "memory.current").read_text())
            facts = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
            reclaimable = sum(int(facts.get(key, 0)) for key in ("active_file", "inactive_file", "slab_reclaimable"))
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            limits.append((int(limit), max(0, used - reclaimable)))
    return limits
