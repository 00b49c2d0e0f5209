"""How long to leave something alone after it failed: doubled every time up to a bound, with jitter. Pure."""

from __future__ import annotations

from collections.abc import Callable

MAX_RETRY_AFTER_SECONDS = 3600.0
"""A server that asks to be left alone is, for an hour at most: a wrong header must not take a device out of reach."""


def doubled(first: float, longest: float, failures: int) -> float:
    """The wait after ``failures`` failures in a row, the first of which is number 0: no jitter."""
    # 2**32 seconds are beyond any bound; larger powers would overflow a float in the end.
    return min(longest, first * 2.0 ** min(failures, 32))


class Backoff:
    """The waits between attempts at one thing, from ``first`` to ``longest`` seconds.

    ``uniform(low, high)`` is a random number between them: half of every wait is random, since a fleet must not come
    back at once.
    """

    def __init__(self, first: float, longest: float, uniform: Callable[[float, float], float]) -> None:
        self._first = first
        self._longest = longest
        self._uniform = uniform
        self._failures = 0

    def after_failure(self, retry_after: float | None = None) -> float:
        """Seconds to wait now; ``retry_after`` is what the other side asked for, and is granted within bounds."""
        delay = doubled(self._first, self._longest, self._failures) * self._uniform(0.5, 1.0)
        self._failures += 1
        if retry_after is None:
            return delay
        asked = max(0.0, min(retry_after, MAX_RETRY_AFTER_SECONDS))
        return max(delay, asked * self._uniform(1.0, 1.1))

    def reset(self) -> None:
        """It went on: the next failure is the first again."""
        self._failures = 0
