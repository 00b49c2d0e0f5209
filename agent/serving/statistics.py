"""What is counted since the last swap: for probation, and to estimate when to retry. Pure."""

from __future__ import annotations

from agent.install.ports import ServingCounters, Speed

DEFAULT_SECONDS_EACH = 2.0
"""Assumed for a request until some were answered."""


class Statistics:
    """``seconds_each`` is a moving average of how long a request ran; it outlives swaps.

    An answer counts as being generated from its first token, which belongs to the prompt, to its end. Time in which
    none is does not count; answers are identified by numbers that are never reused.
    """

    def __init__(self, seconds_each: float = DEFAULT_SECONDS_EACH) -> None:
        self.finished = 0
        self.failed = 0
        self.crashes = 0
        self.seconds_each = seconds_each
        self._tokens = 0
        self._busy_seconds = 0.0
        self._answer_seconds = 0.0
        self._since = 0.0
        self._answers: dict[int, int] = {}

    def record_tokens(self, answer: int, tokens: int, now: float) -> None:
        """``answer`` has ``tokens`` now."""
        before = self._answers.get(answer)
        if before is None:
            self._advance(now)
        else:
            self._tokens += tokens - before
        self._answers[answer] = tokens

    def record_end(self, answer: int, now: float, tokens: int = 0) -> None:
        """``answer`` is not generated any more; with ``tokens`` in all, if that is known."""
        self._advance(now)
        before = self._answers.pop(answer, tokens)
        self._tokens += max(0, tokens - before)

    def record_duration(self, seconds: float) -> None:
        """A request ran for so long."""
        self.seconds_each += 0.1 * (seconds - self.seconds_each)

    def counters(self, now: float) -> ServingCounters:
        self._advance(now)
        speed = None
        if self._tokens and self._busy_seconds > 0:
            speed = Speed(self._tokens / self._busy_seconds, self._tokens / self._answer_seconds)
        return ServingCounters(self.finished, self.failed, self.crashes, speed, self._busy_seconds)

    def _advance(self, now: float) -> None:
        if self._answers:
            self._busy_seconds += now - self._since
            self._answer_seconds += (now - self._since) * len(self._answers)
        self._since = now
