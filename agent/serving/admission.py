"""Whether one more request may come in, and how long it has to wait."""

from __future__ import annotations

from collections.abc import Callable

from agent.serving import requests
from agent.serving.active_request import ActiveRequest
from agent.serving.queue import RequestQueue, Reservation
from agent.serving.requests import Refusal
from agent.serving.statistics import Statistics
from agent.serving.switchover import Switchover

RETRY_ENGINE_MS = 10_000
RETRY_NO_MODEL_MS = 30_000
SHORTEST_RETRY_SECONDS = 0.5

NO_MODEL = Refusal(503, requests.NO_MODEL, "no model is installed on this device", retry_after_ms=RETRY_NO_MODEL_MS)
ENGINE_UNAVAILABLE = Refusal(
    503, requests.ENGINE_UNAVAILABLE, "the model cannot be loaded at the moment", retry_after_ms=RETRY_ENGINE_MS
)


class Admission:
    """``reserved`` says what (of a client, or of all) the result store has not judged yet: it needs room, too."""

    def __init__(
        self,
        queue: RequestQueue[ActiveRequest],
        switchover: Switchover,
        statistics: Callable[[], Statistics],
        reserved: Callable[[str | None], Reservation],
    ) -> None:
        self._queue = queue
        self._switchover = switchover
        self._statistics = statistics
        self._reserved = reserved
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
        replica = self._switchover.replica
        if self.stopping or self._switchover.paused:
            return None
        if replica is None:
            return None if self.starting else ENGINE_UNAVAILABLE if self.unavailable else NO_MODEL
        return ENGINE_UNAVAILABLE if replica.unavailable else None

    def refusal(self, client: str, size: int) -> Refusal | None:
        """Why a new request of ``client`` with ``size`` bytes cannot be taken now."""
        closed = self.closed()
        reserved, own = self._reserved(None), self._reserved(client)
        if closed is None and not self._queue.has_room(client, size, reserved=reserved, own=own):
            # By then about half of them are through.
            wait = max(SHORTEST_RETRY_SECONDS, self.estimate(len(self._queue) // 2))
            text = "too many requests wait; try again later"
            return Refusal(429, requests.QUEUE_FULL, text, retry_after_ms=int(1000 * wait))
        return closed

    def estimate(self, ahead: int) -> float:
        """Seconds until a request begins that ``ahead`` others of the queue come before."""
        slots = (
            sum(replica.worker.facts.slots for replica in self._switchover.replicas if replica.worker is not None) or 1
        )
        return self._statistics().seconds_each * (ahead + 1) / slots
