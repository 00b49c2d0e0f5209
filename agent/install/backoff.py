"""How long to leave a source alone after it failed: doubled every time up to a bound, with jitter."""

from __future__ import annotations

import random
from collections.abc import Callable

MAX_RETRY_AFTER_SECONDS = 3600.0
"""A server that asks to be left alone is, for an hour at most: a wrong header must not take a device out of reach."""


class Backoff:
    """The waits between attempts at one thing, from ``first`` to ``longest`` seconds.

    ``spread(low, high)`` is a random number between them: a fleet must not come back at once.
    """

    def __init__(self, first: float, longest: float, spread: Callable[[float, float], float] = random.uniform) -> None:
        self._first = first
        self._longest = longest
        self._spread = spread
        self._failures = 0

    def after_failure(self, retry_after: float | None = None) -> float:
        """Seconds to wait now; ``retry_after`` is what the source asked for, and is granted within bounds."""
        delay = min(self._longest, self._first * 2.0 ** min(self._failures, 30)) * self._spread(0.5, 1.0)
        self._failures += 1
        if retry_after is None:
            return delay
        asked = max(0.0, min(retry_after, MAX_RETRY_AFTER_SECONDS))
        return max(delay, asked * self._spread(1.0, 1.1))

    def reset(self) -> None:
        """It went on: the next failure is the first again."""
        self._failures = 0
