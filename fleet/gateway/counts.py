"""What the gateway counts, for ``/metrics``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fleet.http.metrics import Histogram, Labels, Sample, counter, gauge

_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Counts:
    """Since the process started. Names of keys and devices are no labels: there may be thousands."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._requests: Counter[Labels] = Counter()
        self._tokens: Counter[Labels] = Counter()
        self._retries: Counter[Labels] = Counter()
        self._first = Histogram("edge_gateway_first_chunk_seconds", "Until the first chunk of a stream.", _BOUNDS)
        self._whole = Histogram("edge_gateway_request_seconds", "Until the end of an answer.", _BOUNDS)

    def ended(self, path: str, status: int, seconds: float) -> None:
        """A request to ``path`` was answered."""
        self._requests[(("path", path), ("status", str(status)))] += 1
        if status == 200:
            self._whole.observe(seconds)

    def first_chunk(self, seconds: float) -> None:
        self._first.observe(seconds)

    def tokens(self, prompt: int, answer: int) -> None:
        self._tokens[(("kind", "prompt"),)] += prompt
        self._tokens[(("kind", "answer"),)] += answer

    def asked_another(self) -> None:
        """A device had no room or vanished."""
        self._retries[()] += 1

    def samples(self, *, online: int, ready: int) -> Sequence[Sample]:
        """All of it, and how many devices there are."""
        return [
            counter("edge_gateway_requests_total", "Requests by path and HTTP status.", self._requests),
            counter("edge_gateway_tokens_total", "Tokens of prompts and answers.", self._tokens),
            counter("edge_gateway_retries_total", "Requests that another device was asked for.", self._retries),
            gauge("edge_gateway_requests_in_flight", "Requests that are answered now.", self.in_flight),
            gauge("edge_gateway_devices_online", "Devices that are online.", online),
            gauge("edge_gateway_devices_ready", "Devices that can answer now.", ready),
            self._first.sample(),
            self._whole.sample(),
        ]
