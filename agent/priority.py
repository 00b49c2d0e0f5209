"""What the agent's processes give way to: work that can wait must not slow down or outlive the models that answer."""

from __future__ import annotations

import os
from pathlib import Path

WEAKEST = 19

FIRST_TO_GO = 900
WORKER_TO_GO = 500
"""When memory ends, what can be done again later ends before what answers, and that before everything else: scores
for the kernel, 0 to 1000; the worker's unit says the same.
"""


def give_way(niceness: int) -> None:
    """Take on ``niceness``, unless this process is weaker already.

    That takes no privilege, and without one there is no way back; children inherit it. The agent itself is placed above
    others, so this counts from zero, not from what was inherited.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) < niceness:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def go_first(score: int = FIRST_TO_GO) -> bool:
    """Be ended for want of memory before others with less than ``score``; False where the kernel does not let us."""
    place = Path("/proc/self/oom_score_adj")
    try:
        if int(place.read_text("ascii")) < score:
            place.write_text(str(score), encoding="ascii")
    except (OSError, ValueError):
        return False
    return True
