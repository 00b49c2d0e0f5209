"""Which cores compute a model: all of them, or the fast ones where a board has fast and slow ones. Looks at ``/sys``.

The runtime gives each of its threads an equal share and waits for the last one. So cores of a kind add up, and a slow
one beside them holds the fast ones up: four fast cores and four of two fifths their strength do more without those.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

STRENGTHS = ("cpu_capacity", "cpufreq/cpuinfo_max_freq")
"""What says how strong a core is: the kernel's own measure (ARM), else its highest clock."""


def computing_cores(allowed: Collection[int], root: Path = Path("/sys/devices/system/cpu")) -> frozenset[int]:
    """Those of ``allowed`` that do most together; all where the kernel says nothing of their strength."""
    for name in STRENGTHS:
        found = {core: _number(root / f"cpu{core}" / name) for core in allowed}
        known = {core: strength for core, strength in found.items() if strength > 0}
        if known and len(known) == len(found):
            return strongest(known)
    return frozenset(allowed)


def strongest(strengths: Mapping[int, int]) -> frozenset[int]:
    """The cores whose number times the least of their strengths is largest; the fewer ones of equals. Pure."""
    sets = [
        frozenset(core for core, strength in strengths.items() if strength >= least)
        for least in sorted(set(strengths.values()), reverse=True)
    ]
    return max(sets, key=lambda cores: len(cores) * min(strengths[core] for core in cores))


def _number(file: Path) -> int:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):
        return 0
