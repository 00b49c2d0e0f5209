"""How the kernel writes what it knows: texts of ``/proc`` and ``/sys`` into numbers. Pure.

Every function takes the text of one file and raises ValueError, KeyError or IndexError for what it cannot read, which
the sampler takes as absent: these files differ between kernels, containers and boards.
"""

from __future__ import annotations

SECTOR_BYTES = 512
"""/proc/diskstats counts in these, whatever the disk's own sectors are."""

VIRTUAL_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd")
"""They move bytes that a real disk (or memory) moves again."""


VIRTUAL_INTERFACES = ("veth", "docker", "br-", "virbr", "vnet", "tap", "cali", "lxc", "cni", "flannel")
"""Containers and virtual machines make and remove them under new names; what leaves the box is counted anyway."""

MAX_INTERFACES = 32
"""A switch board has a dozen; a sample stays a few kilobytes."""


def cpu_times(stat: str) -> dict[str, tuple[int, int]]:
    """``(busy, all)`` ticks of ``cpu`` and each ``cpuN``. Waiting for a disk is not busy; stolen time is."""
    found = {}
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu"):
            # user nice system idle iowait irq softirq steal; guest time is part of user
            ticks = [int(value) for value in fields[:8]]
            found[name] = (sum(ticks) - sum(ticks[3:5]), sum(ticks))
    return found


def boot_time(stat: str) -> int:
    return int(next(line.split()[1] for line in stat.splitlines() if line.startswith("btime ")))


def memory(meminfo: str) -> dict[str, int]:
    """Bytes by name."""
    found = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        value, *unit = rest.split()
        found[name] = int(value) * (1024 if unit == ["kB"] else 1)
    return found


def swapped(vmstat: str, page_bytes: int) -> tuple[int, int]:
    """Bytes swapped in and out since boot."""
    found = dict(line.split() for line in vmstat.splitlines())
    return int(found["pswpin"]) * page_bytes, int(found["pswpout"]) * page_bytes


def disk_bytes(diskstats: str, whole: set[str]) -> tuple[int, int] | None:
    """Bytes read and written by the disks in ``whole`` (names of ``/sys/block``); None without a real one."""
    read = written = 0
    seen = False
    for line in diskstats.splitlines():
        fields = line.split()
        if fields[2] in whole and not fields[2].startswith(VIRTUAL_DISKS):
            seen = True
            read += int(fields[5]) * SECTOR_BYTES
            written += int(fields[9]) * SECTOR_BYTES
    return (read, written) if seen else None


def network_bytes(dev: str) -> dict[str, tuple[int, int]]:
    """Bytes sent and received by interface, without the loopback and those of containers."""
    found: dict[str, tuple[int, int]] = {}
    for line in dev.splitlines()[2:]:
        words, _, rest = line.rpartition(":")
        name, fields = words.strip(), rest.split()
        if name != "lo" and not name.startswith(VIRTUAL_INTERFACES) and len(found) < MAX_INTERFACES:
            found[name] = (int(fields[8]), int(fields[0]))
    return found


def pressure(text: str) -> dict[str, float]:
    """``avg10`` of each kind."""
    found = {}
    for line in text.splitlines():
        kind, *fields = line.split()
        found[kind] = float(dict(entry.split("=", 1) for entry in fields)["avg10"])
    return found


def process_ticks(stat: str) -> tuple[int, int]:
    """Ticks of processor time and the tick of its start, from ``/proc/PID/stat``; the name may hold anything."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]), int(fields[19])


def resident_pages(statm: str) -> int:
    return int(statm.split()[1])


def proportional_bytes(rollup: str) -> int:
    """PSS from ``smaps_rollup``."""
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
