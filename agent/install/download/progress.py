"""Counts the bytes of a bundle on their way and says so now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agent.install.ports import Clock
from agent.install.process.messages import Progressed

REPORT_INTERVAL_SECONDS = 0.25
"""Fast enough for a bar on a terminal; whoever publishes it slows it down further."""

MIN_RATE_SECONDS = 1.0
"""A rate measured over less is noise."""


class ProgressMeter:
    """``clock`` is monotonic seconds; ``report`` gets a line at most every quarter second, and the last one.

    May be used from several threads.
    """

    def __init__(self, total: int, report: Callable[[Progressed], None], clock: Clock) -> None:
        self._total = total
        self._report = report
        self._clock = clock
        self._lock = threading.Lock()
        self._done = self._reused = self._fetched = self._arrived = 0
        self._started: float | None = None
        self._last = float("-inf")

    def found(self, count: int) -> None:
        """``count`` bytes were here already, from an earlier attempt."""
        self._add(done=count)

    def reused(self, count: int) -> None:
        """``count`` bytes came from another bundle on this device."""
        self._add(done=count, reused=count)

    def arrived(self, count: int) -> None:
        """``count`` bytes came and wait for their turn to be written; :meth:`fetched` follows."""
        with self._lock:
            if self._started is None:
                self._started = self._clock()
            self._arrived += count

    def fetched(self, count: int, *, again: int = 0) -> None:
        """``count`` bytes were transferred, verified and written, ``again`` of them were here before."""
        self._add(done=count - again, fetched=count)

    def _add(self, *, done: int, reused: int = 0, fetched: int = 0) -> None:
        with self._lock:
            now = self._clock()
            if fetched and self._started is None:
                self._started = now
            self._done += done
            self._reused += reused
            self._fetched += fetched
            if now - self._last >= REPORT_INTERVAL_SECONDS:
                self._last = now
                self._report(self._line(now))

    def finish(self) -> None:
        """Report the final numbers."""
        with self._lock:
            self._report(self._line(self._clock()))

    def _line(self, now: float) -> Progressed:
        left = None
        if self._started is not None and now - self._started >= MIN_RATE_SECONDS and self._fetched:
            # Several ranges arrive at once and are written one after the other: what waits need not come any more.
            arrived = max(self._arrived, self._fetched)
            to_come = max(0, self._total - self._done - (arrived - self._fetched))
            left = round(to_come * (now - self._started) / arrived, 1)
        return Progressed(self._done, self._total, self._reused, self._fetched, left)
