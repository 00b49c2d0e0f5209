"""Subscriptions that a broker ends the connection for, as some do where their rules forbid one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agent.mqtt.outbox import LOSSES

ALONE_LOSSES = 2
"""A filter that was asked for alone, and the connection lost twice before the answer, is left out."""


class FilterSuspicion:
    """Which filters to ask for, together or one by one, after connections were lost before the answer to them."""

    def __init__(self) -> None:
        self._losses = 0
        self._alone: dict[str, int] = {}
        self.left_out: set[str] = set()

    @property
    def suspicious(self) -> bool:
        """The last connection was lost while the broker owed the answer to a subscription."""
        return self._losses > 0

    def next(self, waiting: Sequence[str]) -> list[str]:
        """What to ask for now, of what has not been asked for on this connection."""
        allowed = [topic for topic in waiting if topic not in self.left_out]
        return allowed[:1] if self._losses >= LOSSES else allowed

    def lost(self, outstanding: Sequence[str]) -> list[str]:
        """The connection was lost before the answer; filters that are left out from now on."""
        self._losses += 1
        if len(outstanding) != 1 or self._losses <= LOSSES:
            return []
        topic = outstanding[0]
        self._alone[topic] = self._alone.get(topic, 0) + 1
        if self._alone[topic] < ALONE_LOSSES:
            return []
        self.left_out.add(topic)
        return [topic]

    def answered(self, topic: str) -> None:
        self._alone.pop(topic, None)

    def complete(self) -> None:
        """The broker has answered all of them."""
        self._losses = 0
        self._alone.clear()
