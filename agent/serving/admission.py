"""Whether one more request may come in, and how long it has to wait."""

from __future__ import annotations

from collections.abc import Callable

from agent.serving import requests
from agent.serving.counting import Counting
from agent.serving.jobs import Job
from agent.serving.queue import RequestQueue, Room
from agent.serving.requests import Refusal
from agent.serving.swapping import Swapping

RETRY_ENGINE_MS = 10_000
RETRY_NO_MODEL_MS = 30_000
SHORTEST_RETRY_SECONDS = 0.5

NO_MODEL = Refusal(503, requests.NO_MODEL, "no model is installed on this device", retry_after_ms=RETRY_NO_MODEL_MS)
ENGINE_UNAVAILABLE = Refusal(
    503, requests.ENGINE_UNAVAILABLE, "the model cannot be loaded at the moment", retry_after_ms=RETRY_ENGINE_MS
)


class Admission:
    """``arriving`` says what (of a client, or of all) the ledger has not judged yet: it needs room, too."""

    def __init__(
        self,
        queue: RequestQueue[Job],
        swapping: Swapping,
        counting: Callable[[], Counting],
        arriving: Callable[[str | None], Room],
    ) -> None:
        self._queue = queue
        self._swapping = swapping
        self._counting = counting
        self._arriving = arriving
        self.starting = True
        """Start-up is not over: a model may still come."""
        self.stopping = False
        """The agent is being stopped: whatever waits is answered after the next start, with whatever model is there."""
        self.unavailable = False
        """A bundle is active, and does not load for now."""

    def closed(self) -> Refusal | None:
        """Why nobody's request can be answered now; None where it can, or will be after a swap or the
        next start.
        """
        seat = self._swapping.seat
        if self.stopping or self._swapping.holding:
            return None
        if seat is None:
            return None if self.starting else ENGINE_UNAVAILABLE if self.unavailable else NO_MODEL
        return ENGINE_UNAVAILABLE if seat.hopeless else None

    def refusal(self, client: str, size: int) -> Refusal | None:
        """Why a new request of ``client`` with ``size`` bytes cannot be taken now."""
        closed = self.closed()
        arriving, own = self._arriving(None), self._arriving(client)
        if closed is None and not self._queue.has_room(client, size, arriving=arriving, own=own):
            # By then about half of them are through.
            wait = max(SHORTEST_RETRY_SECONDS, self.estimate(len(self._queue) // 2))
            text = "too many requests wait; try again later"
            return Refusal(429, requests.QUEUE_FULL, text, retry_after_ms=int(1000 * wait))
        return closed

    def estimate(self, ahead: int) -> float:
        """Seconds until a request begins that ``ahead`` others of the queue come before."""
        slots = sum(seat.worker.facts.slots for seat in self._swapping.seats if seat.worker is not None) or 1
        return self._counting().seconds_each * (ahead + 1) / slots
