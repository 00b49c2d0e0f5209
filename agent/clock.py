"""The wall clock, and one that does not jump while the agent runs: what was promised for a quarter of an hour lasts
that long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime


def utc_now() -> datetime:
    """What the wall clock says now."""
    return datetime.now(UTC)


def _since_boot() -> float:
    """Goes on while the box is suspended, and nobody can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def steady_clock(
    wall: Callable[[], float] = time.time, ticks: Callable[[], float] = _since_boot
) -> Callable[[], float]:
    """Unix seconds as ``wall`` says them now, and from then on as ``ticks`` count them.

    A box without a battery for its clock begins in 1970 and is set forward by decades once it has a network.
    """
    offset = wall() - ticks()
    return lambda: offset + ticks()
