"""How much memory this process may use, and what keys and values cost."""

from __future__ import annotations

from pathlib import Path

from contract.genai_config import GenaiFacts

RESERVE = 0.5
"""Share of the available memory that stays free for everybody else."""

FLOAT_BYTES = 4
"""CPU graphs of INT4 and INT8 models keep keys and values in fp32."""


def kv_bytes_per_token(facts: GenaiFacts) -> int:
    """Bytes of keys and values of one token in all layers."""
    return 2 * facts.layers * facts.kv_heads * facts.head_size * FLOAT_BYTES


def usable_bytes() -> int:
    """What may be used for keys, values and scratch: half of what is available now, cgroup limit included."""
    available = _meminfo_available()
    room = _cgroup_room()
    if room is not None:
        available = min(available, room)
    return int(available * RESERVE)


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 30


def _cgroup_room(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left below the tightest memory.max of our cgroup (version 2) and its parents; None without a limit."""
    try:
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    room: int | None = None
    folder = root / own.lstrip("/")
    while folder.is_relative_to(root):
        try:
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                left = int(limit) - int((folder / "memory.current").read_text())
                room = left if room is None else min(room, left)
        except (OSError, ValueError):
            pass
        if folder == root:
            break
        folder = folder.parent
    return None if room is None else max(room, 0)
