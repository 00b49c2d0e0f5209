"""Rates from counters, right across restarts and resets. Pure."""

from __future__ import annotations

from collections.abc import Hashable


class Rates:
    """Remembers the last reading of each counter; counters not read in a round are forgotten at its end."""

    def __init__(self) -> None:
        self._before: dict[Hashable, tuple[float, float]] = {}
        self._now: dict[Hashable, tuple[float, float]] = {}

    def rate(self, key: Hashable, value: float, at: float) -> float | None:
        """Units per second since the round before; ``at`` is a clock that never goes back.

        None for a first reading and for a counter that fell: it wrapped or began anew, and how far it got before that
        nobody knows.
        """
        self._now[key] = (value, at)
        before = self._before.get(key)
        if before is None or value < before[0] or at <= before[1]:
            return None
        return (value - before[0]) / (at - before[1])

    def share(self, key: Hashable, part: float, whole: float) -> float | None:
        """Percent of ``whole`` that ``part`` grew by, both counters; None where that cannot be said."""
        self._now[key] = (part, whole)
        before = self._before.get(key)
        if before is None or part < before[0] or whole <= before[1]:
            return None
        return min(100.0, 100 * (part - before[0]) / (whole - before[1]))

    def end_round(self) -> None:
        """What was not read in this round is gone (an unplugged card, an ended process)."""
        self._before, self._now = self._now, {}
