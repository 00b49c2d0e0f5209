"""A replica as the scheduler sees it. Pure."""

from __future__ import annotations

from agent.serving.active_request import ActiveRequest

UNAVAILABLE_AFTER_FAILURES = 3
"""After so many failed loads in a row, waiting requests fail instead of being left waiting."""


class Slots:
    """``reference`` names the bundle (NAME@VERSION); ``capacity`` requests are advanced at once, 0 while nothing is
    loaded. Only the scheduler changes it.
    """

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.capacity = 0
        self.running: dict[int, ActiveRequest] = {}
        self.failures = 0
        self.lost = False
        """Its worker ended, and there is no other yet."""
        self.problem = ""
        """How it ended, or why no other could be loaded."""
        self.unloaded = False
        """For want of requests."""

    @property
    def unavailable(self) -> bool:
        """It was tried often enough: nobody should wait for it."""
        return not self.capacity and self.failures >= UNAVAILABLE_AFTER_FAILURES

    def weight(self, request: ActiveRequest) -> int:
        """How many answers to ``request`` are advanced at once here: each takes one of the engine's slots."""
        return min(request.params.n, max(1, self.capacity))

    @property
    def answers(self) -> int:
        """How many are advanced now."""
        return sum(self.weight(request) for request in self.running.values())

    def takes(self, request: ActiveRequest) -> bool:
        """Whether ``request`` may run here now. One that lost a worker runs alone: were it to blame, and took the next
        one down as well, its neighbours would pay for it a second time.
        """
        if not self.capacity or self.answers + self.weight(request) > self.capacity:
            return False
        return not self.running or not (request.crashes or any(other.crashes for other in self.running.values()))
