"""Whether a process is at work: it computes, or waits for what it reads. One that hangs does neither."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")

LEAST_SHARE = 0.005
"""Of a core: less than this is what being woken up takes. The weakest process beside busy ones gets 0.015."""


class Effort(NamedTuple):
    """Since a process began: ``seconds`` of processor time, and how many ``reads`` of a disk it waited for."""

    seconds: float
    reads: int

    def advanced(self, before: Effort, elapsed: float) -> bool:
        """Whether it was at work since ``before``, ``elapsed`` seconds ago."""
        return self.reads > before.reads or self.seconds - before.seconds >= LEAST_SHARE * elapsed


def own_effort() -> Effort:
    """That of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Effort(used.ru_utime + used.ru_stime, used.ru_majflt + used.ru_inblock)


def effort_of(pid: int, proc: Path = PROC) -> Effort:
    """That of another process, as far as the kernel tells (proc(5), ``stat``); none of one that is over."""
    try:
        facts = (proc / str(pid) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        reads, user, system = (int(facts[index]) for index in (_MAJFLT, _UTIME, _STIME))
    except (OSError, ValueError, IndexError):
        return Effort(0.0, 0)
    return Effort((user + system) / os.sysconf("SC_CLK_TCK"), reads)


_MAJFLT, _UTIME, _STIME = 9, 11, 12
"""Numbers behind the name."""
