"""What was sent and nobody has to answer: whether the broker bore it shows in what it answers later. Pure."""

from __future__ import annotations

from collections import deque

MAX_SENT = 256
"""Of messages larger than any that was acknowledged; the oldest are forgotten."""

SETTLED_SECONDS = 10.0
"""A broker that ends the connection for an acknowledgement does it at once."""


class Unconfirmed:
    """QoS 0 messages larger than any that was acknowledged: nobody says whether they arrived, but an acknowledgement of
    what was sent after them does.
    """

    def __init__(self) -> None:
        self._sent: deque[tuple[int, int, str]] = deque(maxlen=MAX_SENT)
        self._turn = 0
        self._turns: dict[int, int] = {}
        self._settled: tuple[int, float, str] | None = None

    def sent_once(self, size: int, topic: str) -> None:
        self._turn += 1
        self._sent.append((self._turn, size, topic))

    def sent(self, packet_id: int) -> None:
        """A QoS 1 message went out."""
        if self._sent or self._settled is not None:
            self._turns[packet_id] = self._turn

    def acknowledged(self, packet_id: int) -> int:
        """It was answered: what went before it has arrived; the largest of those in bytes, 0 if there were none."""
        turn, largest = self._turns.pop(packet_id, 0), 0
        if self._settled is not None and self._settled[0] <= turn:
            self._settled = None
        while self._sent and self._sent[0][0] <= turn:
            largest = max(largest, self._sent.popleft()[1])
        return largest

    def settled(self, topic: str, now: float) -> None:
        """A message of the broker's was acknowledged, which may be what it does not bear."""
        self._turn += 1
        self._settled = (self._turn, now, topic)

    def just_settled(self, now: float) -> str:
        """The topic of the last such message, if nothing since then shows that the broker bore it."""
        if self._settled is None or now - self._settled[1] > SETTLED_SECONDS:
            return ""
        return self._settled[2]

    def largest(self) -> tuple[int, str] | None:
        """Size and topic of the largest that may not have arrived."""
        return max(((size, topic) for _, size, topic in self._sent), default=None)
