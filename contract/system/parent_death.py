"""Children that must not outlive whoever started them."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(pipe: int | None = None) -> None:
    """Let the kernel kill this process when the thread that started it ends; elsewhere than on Linux, nothing. It may
    have ended before this is asked for: then nobody reads from the ``pipe`` to it, and this process ends at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if pipe is not None:
        poll = select.poll()
        poll.register(pipe, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            os.kill(os.getpid(), signal.SIGKILL)
