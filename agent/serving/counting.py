"""What is counted since the last swap: for probation, and to say when it is worth trying again. Pure."""

from __future__ import annotations

from agent.install.ports import ServingCounters

DEFAULT_SECONDS_EACH = 2.0
"""Assumed for a request until some were answered."""


class Counting:
    """``seconds_each`` is a moving average of how long a request ran; it outlives swaps."""

    def __init__(self, seconds_each: float = DEFAULT_SECONDS_EACH) -> None:
        self.finished = 0
        self.failed = 0
        self.crashes = 0
        self.decode_tokens = 0
        self.decode_seconds = 0.0
        self.seconds_each = seconds_each

    def finish(self, tokens: int, decode_seconds: float | None, run_seconds: float) -> None:
        """A request was answered."""
        self.finished += 1
        self.seconds_each += 0.1 * (run_seconds - self.seconds_each)
        if decode_seconds is not None and tokens > 1:
            self.decode_tokens += tokens - 1
            self.decode_seconds += decode_seconds

    def counters(self) -> ServingCounters:
        speed = self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else None
        return ServingCounters(self.finished, self.failed, self.crashes, speed)
