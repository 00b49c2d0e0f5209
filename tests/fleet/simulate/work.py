"""What a simulated device counts and answers: requests at the speed of its bundle. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

import msgspec
from msgspec import structs

from agent.telemetry.llm import SECONDS, TOKEN_SECONDS, LlmMeter
from agent.telemetry.samples import HistogramSample, Memory, SystemSample
from contract.errors import RequestInvalid
from contract.mqtt.answers import ErrorFrame, LastFrame, Timing, Usage
from contract.mqtt.encoding import encode
from contract.mqtt.faults import ErrorBody
from contract.mqtt.reading import parse_request
from contract.mqtt.topics import NO_ID

SECONDS_A_TOKEN = 0.05
FIRST_TOKEN_SECONDS = 0.05
RAM_BYTES = 4 << 30


class Buckets:
    """A histogram to which many equal observations are added at once."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float, count: int) -> None:
        self._counts[bisect_left(self._bounds, value)] += count
        self._total += value * count

    def sample(self) -> HistogramSample:
        return HistogramSample(
            sum(self._counts), round(self._total, 6), list(self._bounds), list(accumulate(self._counts))
        )


@dataclass(eq=False)
class Work:
    """Counters of a load of ``per_second`` requests; fractions of a request are carried on."""

    per_second: float
    crashes: float = 0.0
    _counted_at: float | None = None
    _rest: float = 0.0

    def __post_init__(self) -> None:
        self.begin_anew(0.0)

    def begin_anew(self, started: float) -> None:
        """As a process that was started again: from zero."""
        self.meter = LlmMeter(started)
        self.crashes = 0.0
        self._first, self._each = Buckets(SECONDS), Buckets(TOKEN_SECONDS)

    def count(self, now: float, speed: float, errors: float = 0.0, crashes_per_hour: float = 0.0) -> None:
        """What was answered until ``now``; ``errors``: share of it that failed."""
        if self._counted_at is not None:
            passed = max(0.0, now - self._counted_at)
            self._rest += passed * self.per_second
            count = int(self._rest)
            self._rest -= count
            self.answered(count, speed, errors)
            self.crashes += passed * crashes_per_hour / 3600
        self._counted_at = now

    def answered(self, count: int, speed: float, errors: float = 0.0) -> None:
        """``count`` requests more."""
        failed = int(count * errors)
        for outcome, number in (("stop", count - failed), ("engine_failed", failed)):
            if number:
                self.meter.requests[outcome] = self.meter.requests.get(outcome, 0) + number
        self._first.add(FIRST_TOKEN_SECONDS, count)
        self._each.add(SECONDS_A_TOKEN / speed, count)

    def llm(self) -> bytes:
        """``telemetry/llm``, as an agent has it."""
        sample = structs.replace(
            self.meter.sample(0, 0),
            crashes=int(self.crashes),
            time_to_first_token=self._first.sample(),
            time_per_output_token=self._each.sample(),
        )
        return msgspec.json.encode(sample)


def system(at: float) -> bytes:
    """``telemetry/system`` of a machine in good health."""
    return msgspec.json.encode(SystemSample(at, memory=Memory(RAM_BYTES, RAM_BYTES // 2)))


def answer(payload: bytes, bundle: str, text: str | None) -> tuple[str, bytes]:
    """A request's id, and the last frame to it: ``text``, or that nobody answers, or why the request is refused."""
    try:
        request_id, _ = parse_request(payload)
    except RequestInvalid as refused:
        return NO_ID, encode(ErrorFrame(0, ErrorBody(refused.code, "invalid_request", refused.message)))
    if text is None:
        return request_id, encode(ErrorFrame(0, ErrorBody(503, "no_model", "nothing is installed that answers")))
    words = max(1, len(text.split()))
    usage, timing = Usage(8, words, 8 + words), Timing(queue_ms=0.0, first_token_ms=50.0, total_ms=60.0)
    return request_id, encode(LastFrame(0, text, "stop", usage, timing, 1, bundle))
