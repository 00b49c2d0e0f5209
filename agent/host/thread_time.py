"""How long a thread computed, and how long it was held up by anything but others on its core."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class ThreadTime(NamedTuple):
    """Seconds: ``computed`` on a core; ``waited`` for something that is no core, a lock, a disk, the network or sleep.

    What is left of the time that passed, the thread was ready and others ran: no fault of what it does. Without the
    kernel's count of that (``/proc/thread-self/schedstat``) it is in ``waited``, and so is what a hypervisor took.
    """

    computed: float
    waited: float


class ThreadStopwatch:
    """Counts from its making on, for the thread that made it."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        proc: Path = PROC,
    ) -> None:
        self._clock = clock
        self._cpu = cpu
        self._schedstat = proc / "thread-self" / "schedstat"
        # The clock is read last here and first below: who loses its core in between is not told that it waited.
        self._ready = self._ready_seconds()
        self._computed = cpu()
        self._began = clock()

    def read(self) -> ThreadTime:
        """What has passed until now."""
        elapsed = self._clock() - self._began
        computed = self._cpu() - self._computed
        ready = self._ready_seconds() - self._ready
        return ThreadTime(computed, max(0.0, elapsed - computed - ready))

    def _ready_seconds(self) -> float:
        """How long this thread has been ready to run in its life, and did not."""
        try:
            return int(self._schedstat.read_bytes().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0
