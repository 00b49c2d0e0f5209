"""What the agent's processes give way to: work that can wait must not slow down or outlive the models that answer."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

WEAKEST = 19

FIRST_TO_GO = 900
WORKER_TO_GO = 500
"""When memory ends, what can be done again later ends before what answers, and that before everything else: scores
for the kernel, 0 to 1000; the worker's unit says the same.
"""


def give_way(niceness: int, to_go: int = FIRST_TO_GO) -> None:
    """Take on ``niceness`` unless this process is weaker already, and ``to_go``, so that it is ended before others.

    Neither takes a privilege, and without one there is no way back; children inherit both. The agent itself is placed
    above others, so this counts from zero, not from what was inherited.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) < niceness:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
    # Not there in some containers; then nothing was promised either.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(to_go), encoding="ascii")
