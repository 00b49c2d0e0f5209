"""How much memory there is: this machine's, or what a control group leaves, as the kernel counts it.

The kernel counts the file cache as available, and with it weights that a process has mapped and reads for every token.
Who plans with :func:`available_memory` leaves those out: see :func:`mapped_bytes`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from contract.errors import StoreBroken
from contract.system.control_groups import memory_limits

_MEMINFO = Path("/proc/meminfo")
_VMSTAT = Path("/proc/vmstat")
_PROC = Path("/proc")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def total_memory() -> int:
    """RAM that this process and its workers may use: the machine's, or less where a control group says so."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in memory_limits(_PROC, _CGROUP_ROOT))])


def available_memory() -> int:
    """RAM that a new process could use now without swapping, control groups respected."""
    rooms = [limit - used for limit, used in memory_limits(_PROC, _CGROUP_ROOT)]
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


def resident_bytes() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def proportional_bytes() -> int:
    """The same, what is shared divided among those who share it; 0 where the kernel does not say."""
    with contextlib.suppress(OSError):
        for text in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if text.startswith("Pss:"):
                return int(text.split()[1]) * 1024
    return 0


def memory_kills() -> int:
    """How many processes the kernel has ended for want of memory since this machine started, in whatever group."""
    try:
        found = re.search(r"^oom_kill (\d+)$", _VMSTAT.read_text("ascii"), re.MULTILINE)
    except OSError:
        return 0
    return 0 if found is None else int(found[1])


def peak_rss_bytes() -> int:
    """The most memory this process had resident since it started (``getrusage`` would count its parent's too)."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith("VmHWM:"):
            return int(text.split()[1]) * 1024
    return 0


def _meminfo(key: str) -> int:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", _MEMINFO.read_text("ascii"), re.MULTILINE)
    except OSError as error:
        raise StoreBroken(f"{_MEMINFO} cannot be read: {error.strerror}") from error
    if found is None:
        raise StoreBroken(f"{_MEMINFO} has no {key}")
    return int(found[1]) * 1024
