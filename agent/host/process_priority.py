"""What the agent's processes give way to: work that can wait must not slow down or outlive the models that answer."""

from __future__ import annotations

import os
from pathlib import Path

MAX_NICE = 19

OOM_SCORE_INSTALLER = 900
OOM_SCORE_WORKER = 500
"""When memory ends, what can be done again later ends before what answers, and that before everything else: scores
for the kernel, 0 to 1000; the worker's unit says the same.
"""


def set_nice(niceness: int) -> None:
    """Take on ``niceness``, unless this process is weaker already.

    That takes no privilege, and without one there is no way back; children inherit it. The agent itself is placed above
    others, so this counts from zero, not from what was inherited.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) < niceness:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def set_oom_score_adj(score: int = OOM_SCORE_INSTALLER) -> bool:
    """Be ended for want of memory before others with less than ``score``; False where the kernel does not let us."""
    path = Path("/proc/self/oom_score_adj")
    try:
        if int(path.read_text("ascii")) < score:
            path.write_text(str(score), encoding="ascii")
    except (OSError, ValueError):
        return False
    return True
