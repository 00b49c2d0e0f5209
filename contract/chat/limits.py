"""Bounds on work that runs somebody else's program: processor time by a timer's signal, memory by a resource limit.

Time is the main thread's own. The limit of memory is the whole process's: where another thread works in it, a model
that is loaded or a picture that is looked at would be refused memory for a template's sake. Whoever gives a thread such
work says so with :func:`leave_memory_to`; as long as that lasts, memory is bounded by the process's own limit alone.
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from contract.errors import EngineFailed

CPU_SECONDS = 2.0
"""A thousand messages take 20 ms on a desktop processor; the slowest boxes are 20 times slower."""

MEMORY_BYTES = 32 << 20
"""Several copies of the longest request (1 MiB, up to four bytes a character)."""

AGAIN_SECONDS = 0.05
"""Between signals: the first may come too early, since the timer counts all threads, and Python may swallow what the
handler raises.
"""

T = TypeVar("T")


class LimitExceeded(Exception):
    """It took more than it may; ``what`` it took is said in words."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Allowance:
    """What one request's work may take in all, however many pieces it comes in."""

    def __init__(self, seconds: float = CPU_SECONDS, memory: int = MEMORY_BYTES) -> None:
        self.granted = self.seconds = seconds
        self.memory = memory


class _OutOfTime(BaseException):
    """Nothing that catches ``Exception`` may hold it up."""


_running = threading.Event()
_until = 0.0
"""Processor time of the main thread at which what runs has had its time."""

_elsewhere: set[Future[Any]] = set()
"""Work in other threads that may need memory."""


def leave_memory_to(work: Future[Any]) -> None:
    """Bound nothing by a limit of memory until ``work``, which another thread does, is done. Called by the thread that
    runs what is bounded.
    """
    _elsewhere.add(work)
    work.add_done_callback(_elsewhere.discard)


def _ring(number: int, frame: FrameType | None) -> None:
    if _running.is_set() and time.thread_time() >= _until:
        raise _OutOfTime


def run_bounded(work: Callable[[], T], allowance: Allowance) -> T:
    """What ``work`` returns; ``allowance`` shrinks by the processor time it took, that of other threads left out.

    Raises:
        LimitExceeded: more time, memory or depth than there is.
        EngineFailed: not in the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EngineFailed("chat templates are rendered in the main thread alone")
    # Left in place, since the default would end the process if a signal came late.
    signal.signal(signal.SIGPROF, _ring)
    signal.siginterrupt(signal.SIGPROF, False)  # other threads read files meanwhile
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    shared = bool(_elsewhere)
    began = time.thread_time()
    global _until  # noqa: PLW0603 - the signal's handler is one for the process
    _until = began + allowance.seconds
    try:
        try:
            if not shared:
                _limit_memory(allowance.memory, limits)
            _running.set()
            signal.setitimer(signal.ITIMER_PROF, max(allowance.seconds, 1e-6), AGAIN_SECONDS)
            return work()
        finally:
            _release(limits)
    except _OutOfTime:
        raise LimitExceeded(f"more than {allowance.granted:g} seconds of processor time") from None
    except MemoryError:
        most = "there is" if shared else f"{allowance.memory >> 20} MiB"
        raise LimitExceeded(f"more memory than {most}") from None
    except RecursionError:
        raise LimitExceeded("more depth than there is") from None
    finally:
        _release(limits)  # the signal may have cut the first one short
        allowance.seconds -= time.thread_time() - began


def _limit_memory(most: int, limits: tuple[int, int]) -> None:
    soft, hard = limits
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    wanted = taken + most
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))


def _release(limits: tuple[int, int]) -> None:
    _running.clear()
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_DATA, limits)
