"""How much of a time something waited for a core: what probation must not blame a bundle for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")

_WAITED = re.compile(r"^some .*\btotal=(\d+)$", re.MULTILINE)
_STEAL = 7
"""Which number of the first line of ``/proc/stat`` counts what the hypervisor gave to others (proc(5))."""


MIN_SECONDS = 0.1
"""The kernel adds up in steps of milliseconds: over less than this a share means nothing."""


class CpuContention:
    """Counts from its making on. ``clock`` gives seconds; without PSI in the kernel, stolen time alone counts."""

    def __init__(self, clock: Callable[[], float], proc: Path = PROC) -> None:
        self._clock = clock
        self._proc = proc
        self._began = clock()
        self._waited = self._seconds()

    def share(self) -> float:
        """The part of the time since then, 0 to 1, in which something waited for a core."""
        elapsed = self._clock() - self._began
        if elapsed < MIN_SECONDS:
            return 0.0
        return min(1.0, max(0.0, (self._seconds() - self._waited) / elapsed))

    def _seconds(self) -> float:
        """Whatever cannot be read counts for nothing: then a bundle is judged by its speed as it is."""
        waited = 0.0
        try:
            found = _WAITED.search((self._proc / "pressure" / "cpu").read_text("ascii"))
            waited += int(found[1]) / 1e6 if found else 0.0
        except (OSError, ValueError):
            pass
        try:
            stolen = (self._proc / "stat").read_text("ascii").split("\n", 1)[0].split()[1:][_STEAL]
            waited += int(stolen) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)
        except (OSError, ValueError, IndexError):
            pass
        return waited
