"""The last readings of a number, for a sparkline. Pure: times are handed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

KEPT = 120
"""Readings; at one in ten seconds that is twenty minutes, and wider than most terminals' sparklines."""

BARS = "▁▂▃▄▅▆▇█"
GAP = " "


class Series:
    """Oldest first; None where nothing could be said."""

    def __init__(self) -> None:
        self._values: deque[float | None] = deque(maxlen=KEPT)

    def add(self, value: float | None) -> None:
        self._values.append(value)

    @property
    def last(self) -> float | None:
        return self._values[-1] if self._values else None

    @property
    def values(self) -> list[float | None]:
        return list(self._values)


class Speed:
    """A counter's rate per second between two readings, in ``series``."""

    def __init__(self) -> None:
        self.series = Series()
        self._before: tuple[float, float, Hashable] | None = None

    def read(self, count: float, at: float, era: Hashable) -> None:
        """``era`` is another one when the counter began anew; then, and when it fell, nobody knows the rate."""
        before, self._before = self._before, (count, at, era)
        if before is None or before[2] != era or count < before[0] or at <= before[1]:
            self.series.add(None)
        else:
            self.series.add((count - before[0]) / (at - before[1]))


def sparkline(values: Sequence[float | None], width: int, *, low: float = 0.0, high: float | None = None) -> str:
    """The last ``width`` values between ``low`` and ``high`` (else the largest of them) as bars, right-aligned."""
    shown = list(values)[-width:] if width > 0 else []
    known = [value for value in shown if value is not None]
    top = max(known, default=0.0) if high is None else high
    span = max(top - low, 1e-9)
    bars = "".join(
        GAP if value is None else BARS[round(min(1.0, max(0.0, (value - low) / span)) * (len(BARS) - 1))]
        for value in shown
    )
    return bars.rjust(max(0, width))
