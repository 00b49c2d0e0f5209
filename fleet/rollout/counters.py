"""Counters that only rise, and their increases. Rates are judged by differences of these, never by counting samples:
samples are lost where a broker is busy.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct


class Counters(Struct, frozen=True):
    """Of one device, since it was first heard; ``first_token[i]`` requests had theirs within ``bounds[i]`` seconds (the
    last entry counts all). ``token_seconds`` of ``token_answers``: mean times between tokens, summed over answers.
    """

    requests: int = 0
    errors: int = 0
    crashes: int = 0
    throttled: int = 0
    token_answers: int = 0
    token_seconds: float = 0.0
    bounds: tuple[float, ...] = ()
    first_token: tuple[int, ...] = ()

    def plus(self, other: Counters) -> Counters | None:
        """Both together; None where their histograms cannot be compared."""
        if not other.first_token:
            bounds, first_token = self.bounds, self.first_token
        elif not self.first_token:
            bounds, first_token = other.bounds, other.first_token
        elif self.bounds != other.bounds or len(self.first_token) != len(other.first_token):
            return None
        else:
            bounds = self.bounds
            first_token = tuple(a + b for a, b in zip(self.first_token, other.first_token, strict=True))
        return Counters(
            self.requests + other.requests,
            self.errors + other.errors,
            self.crashes + other.crashes,
            self.throttled + other.throttled,
            self.token_answers + other.token_answers,
            self.token_seconds + other.token_seconds,
            bounds,
            first_token,
        )

    def minus(self, earlier: Counters) -> Counters | None:
        """The increase since ``earlier``; None where one fell, or their histograms cannot be compared."""
        negative = Counters(
            -earlier.requests,
            -earlier.errors,
            -earlier.crashes,
            -earlier.throttled,
            -earlier.token_answers,
            -earlier.token_seconds,
            earlier.bounds,
            tuple(-each for each in earlier.first_token),
        )
        found = self.plus(negative)
        return None if found is None or not found.sound else found

    @property
    def sound(self) -> bool:
        """Whether it can be an increase: nothing below zero, no more errors than requests, buckets in order."""
        numbers = (self.requests, self.errors, self.crashes, self.throttled, self.token_answers, self.token_seconds)
        ascending = all(a <= b for a, b in zip(self.first_token, self.first_token[1:], strict=False))
        return (
            min(numbers) >= 0 and self.errors <= self.requests and ascending and all(n >= 0 for n in self.first_token)
        )

    @property
    def tokens_per_second(self) -> float | None:
        """Of one answer, in the mean; None where there was none."""
        return self.token_answers / self.token_seconds if self.token_answers and self.token_seconds > 0 else None

    @property
    def error_rate(self) -> float | None:
        return self.errors / self.requests if self.requests else None

    def first_token_quantile(self, share: float) -> float | None:
        """Seconds within which ``share`` of the requests had their first token, interpolated within a bucket; the
        largest bound where it lies beyond. None without requests.
        """
        if not self.first_token or not self.first_token[-1] or not self.bounds:
            return None
        wanted = share * self.first_token[-1]
        below = 0
        lower = 0.0
        for bound, count in zip(self.bounds, self.first_token, strict=False):
            if count >= wanted:
                inside = count - below
                return bound if not inside else lower + (bound - lower) * (wanted - below) / inside
            below, lower = count, bound
        return self.bounds[-1]


class Reading(NamedTuple):
    """Raw counters of a device's last sample; ``era`` is another one when they began anew."""

    era: float
    counters: Counters


def accumulate(total: Counters, before: Reading | None, now: Reading) -> tuple[Counters, bool]:
    """The running total after ``now``, and whether that could be said: a counter that fell within one era says nothing,
    and what it says is left out.
    """
    if before is None:
        return total, True
    if not now.counters.sound:
        return total, False
    increase = now.counters.minus(before.counters) if before.era == now.era else now.counters
    found = None if increase is None else total.plus(increase)
    return (total, False) if found is None else (found, True)
