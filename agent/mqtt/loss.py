"""How a connection ended, and what that says. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

SESSION_TAKEN_OVER = 0x8E

_BLAMELESS = frozenset({0x00, 0x04, 0x89, 0x8B, 0x8D, SESSION_TAKEN_OVER, 0x98, 0x9C, 0x9D, 0xA0})
"""Reasons of a DISCONNECT that no message of ours can be: an ordinary end, the server busy, shutting down, keep alive,
taken over, by an administrator, use another server, the server moved, its time for a connection is over.
"""

CONTESTED_LOSSES = 3
"""Brokers restart once or twice in a row; whoever is pushed out three times has a rival."""

CALM_SECONDS = 600.0
"""A connection that lasted so long was not contested."""

HEARD_SECONDS = 3600.0
"""For so long after the last push a rival is reported."""

Kind = Literal["closed", "silent", "said", "unreadable", "ours"]


class Loss(Struct, frozen=True):
    """``closed``: the broker ended it without a word; ``silent``: nothing came any more; ``said``: it gave a reason, in
    MQTT 5 with a ``code``; ``unreadable``: what it sent breaks the protocol; ``ours``: we ended it.
    """

    why: str
    kind: Kind
    code: int | None = None

    @property
    def blameless(self) -> bool:
        """No message that was under way can be the reason."""
        return self.kind == "ours" or (self.kind == "said" and self.code in _BLAMELESS)


class Rivalry:
    """Whether another client uses our client id: a broker ends the older of two connections, and both come back."""

    def __init__(self) -> None:
        self._losses = 0
        self._certain = False
        self._at: float | None = None

    @property
    def losses(self) -> int:
        """Connections in a row that look as if a rival had taken them."""
        return self._losses

    @property
    def contested(self) -> bool:
        return self._losses >= CONTESTED_LOSSES

    def verdict(self, now: float) -> Literal["", "probable", "certain"]:
        """Whether there is one, as far as the last hour tells; certain if the broker said so or it was seen."""
        if self._at is None or now - self._at > HEARD_SECONDS:
            return ""
        if self._certain:
            return "certain"
        return "probable" if self.contested else ""

    def lost(self, loss: Loss, lived: float, now: float, *, suspicious: bool) -> None:
        """A connection that had been accepted ended after ``lived`` seconds; ``suspicious``: a message may be why."""
        if lived >= CALM_SECONDS:
            self._losses = 0
        if loss.code == SESSION_TAKEN_OVER:
            self._losses, self._certain, self._at = self._losses + 1, True, now
        elif loss.kind == "closed" and not suspicious:
            self._losses, self._at = self._losses + 1, now if self._losses + 1 >= CONTESTED_LOSSES else self._at
        else:
            self._losses = 0

    def failed(self) -> None:
        """The broker did not let us in: whoever is pushed out by a rival is let in again at once."""
        self._losses = 0

    def disproved(self) -> None:
        """Nobody but us is at work under our name now; one that was seen before stays known."""
        self._losses = 0
        if not self._certain:
            self._at = None

    def seen(self, now: float) -> None:
        """The other one was seen at work under our name."""
        self._certain, self._at = True, now
