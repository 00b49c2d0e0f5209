"""Counts and distributions of what the model did, named after OpenTelemetry's ``gen_ai`` conventions. Pure.

Counters only rise until the process ends; ``start`` in every sample says since when, so that a reader can tell a
restart from a fall. Histograms carry cumulative counts, so rates over any window are differences of two samples.
"""

from __future__ import annotations

from bisect import bisect_left

from agent.telemetry.samples import HistogramSample, LlmSample

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Bucket bounds of waiting times: a cached prefix answers in 10 ms, a long prompt on a small box in two minutes."""

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bucket bounds of the time between tokens: 1 ms on a fast host, a second on a throttled one."""


MAX_KINDS = 64
"""Of errors and outcomes that are told apart: a few dozen exist, and what a worker sends as one is its own choice."""

OTHER = "other"


class Histogram:
    """Cumulative buckets: ``counts[i]`` observations were at most ``bounds[i]``."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.count += 1
        self.total += value

    def cumulative(self) -> list[int]:
        """Counts for each bound; the last bound is infinity."""
        running = 0
        result = []
        for count in self._counts:
            running += count
            result.append(running)
        return result

    def sample(self) -> HistogramSample:
        return HistogramSample(self.count, round(self.total, 6), list(self.bounds), self.cumulative())


class LlmMeter:
    """What serving counts. ``errors`` and ``refused`` are kept by error type, requests by how they ended."""

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.requests: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.frames = 0
        self.crashes = 0
        self.restarts = 0
        self.swaps = 0
        self.redelivered = 0
        self.time_to_first_token = Histogram(SECONDS)
        self.time_per_output_token = Histogram(TOKEN_SECONDS)
        self.request_duration = Histogram(SECONDS)
        self.queue_time = Histogram(SECONDS)

    def refuse(self, kind: str) -> None:
        """A request was turned away with an error of this type."""
        _count(self.refused, kind)

    def finish(
        self,
        outcome: str,
        *,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        cached_tokens: int = 0,
        queue_seconds: float | None = None,
        first_token_seconds: float | None = None,
        decode_seconds: float | None = None,
        total_seconds: float = 0.0,
    ) -> None:
        """An accepted request ended: ``outcome`` is its finish reason or the type of its error."""
        _count(self.requests, outcome)
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.cached_tokens += cached_tokens
        self.request_duration.observe(total_seconds)
        if queue_seconds is not None:
            self.queue_time.observe(queue_seconds)
        if first_token_seconds is not None:
            self.time_to_first_token.observe(first_token_seconds)
        if decode_seconds is not None and completion_tokens > 1:
            self.time_per_output_token.observe(decode_seconds / (completion_tokens - 1))

    def sample(self, queue: int, active: int, generating: int = 0) -> LlmSample:
        """Everything, for ``telemetry/llm``; ``generating``: tokens of answers that have not ended."""
        return LlmSample(
            start=self.started_at,
            queue=queue,
            active=active,
            generating=generating,
            requests=dict(self.requests),
            refused=dict(self.refused),
            redelivered=self.redelivered,
            frames=self.frames,
            crashes=self.crashes,
            restarts=self.restarts,
            swaps=self.swaps,
            input_tokens=self.prompt_tokens,
            output_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            time_to_first_token=self.time_to_first_token.sample(),
            time_per_output_token=self.time_per_output_token.sample(),
            request_duration=self.request_duration.sample(),
            queue_duration=self.queue_time.sample(),
        )


def _count(counts: dict[str, int], kind: str) -> None:
    name = kind if kind in counts or len(counts) < MAX_KINDS else OTHER
    counts[name] = counts.get(name, 0) + 1
