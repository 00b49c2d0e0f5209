"""Bounds on work that runs somebody else's program: processor time by a timer's signal, memory by a resource limit.

Both are the whole process's, so nothing else may compute in it meanwhile; a worker renders between two steps.
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from contract.errors import EngineFailed

CPU_SECONDS = 2.0
"""A thousand messages take 20 ms on a desktop processor; the slowest boxes are 20 times slower."""

MEMORY_BYTES = 32 << 20
"""Several copies of the longest request (1 MiB, up to four bytes a character)."""

AGAIN_SECONDS = 0.05
"""Where the first signal came to nothing, since Python swallowed what its handler raised, there are more."""

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


def _ring(number: int, frame: FrameType | None) -> None:
    if _running.is_set():
        raise _OutOfTime


def run_bounded(work: Callable[[], T], allowance: Allowance) -> T:
    """What ``work`` returns; ``allowance`` shrinks by the processor time it took.

    Raises:
        LimitExceeded: more time, memory or depth than there is.
        EngineFailed: not in the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EngineFailed("chat templates are rendered in the main thread alone")
    # Left in place, since the default would end the process if a signal came late.
    signal.signal(signal.SIGPROF, _ring)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    began = time.process_time()
    try:
        try:
            _limit_memory(allowance.memory, limits)
            _running.set()
            signal.setitimer(signal.ITIMER_PROF, max(allowance.seconds, 1e-6), AGAIN_SECONDS)
            return work()
        finally:
            _release(limits)
    except _OutOfTime:
        raise LimitExceeded(f"more than {allowance.granted:g} seconds of processor time") from None
    except MemoryError:
        raise LimitExceeded(f"more than {allowance.memory >> 20} MiB of memory") from None
    except RecursionError:
        raise LimitExceeded("more depth than there is") from None
    finally:
        _release(limits)  # the signal may have cut the first one short
        allowance.seconds -= time.process_time() - began


def _limit_memory(most: int, limits: tuple[int, int]) -> None:
    soft, hard = limits
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    wanted = taken + most
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))


def _release(limits: tuple[int, int]) -> None:
    _running.clear()
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_DATA, limits)
