"""What a connection owes its broker, apart from sockets: waiting times, unacknowledged messages, order of acks. Pure.

MQTT client libraries keep these inside; here they outlive a connection, so that a message counts as delivered only
when the broker has acknowledged it, whatever happened in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import Struct

MAX_IN_FLIGHT = 64
"""QoS 1 messages of ours that may wait for the broker at once, unless it allows fewer (Receive Maximum)."""

MAX_EXPENDABLE_BYTES = 1 << 20
"""Waiting for the broker: with more than this, what nobody was promised is left out (errors of requests that were
turned away, answers that are on their way already). It is room for thousands of errors, so that only a broker that
takes nothing gets there.
"""

MESSAGE_BYTES = 256
"""What a waiting message takes besides topic, payload and correlation data."""


LOSSES = 3
"""A broker restarts, a link breaks: that happens once, perhaps twice, just when a certain message is on its way."""


class Undeliverable(Struct, frozen=True):
    """A message that was not delivered, since the broker does not take it. ``announced``: the bytes it says it takes.

    ``by_size``: smaller ones come through, as far as is known.
    """

    topic: str
    size: int
    announced: int | None = None
    by_size: bool = True

    @property
    def why(self) -> str:
        """One clause for people."""
        if self.announced is not None:
            return f"the broker takes {self.announced:,} bytes at most"
        if self.by_size:
            return f"it has {self.size:,} bytes, and the broker does not take so many in a message"
        return f"the broker ends the connection when it gets it ({self.size:,} bytes)"


OnAnswer = Callable[[Undeliverable | None], None]
"""Called with None once the broker has answered a message, else with why it never gets it."""


class Outgoing(Struct, frozen=True):
    """A QoS 1 message on its way; ``number`` tells it from others, ``on_answer`` wants to know what becomes of it."""

    number: int
    topic: str
    payload: bytes
    retain: bool = False
    correlation: bytes | None = None
    on_answer: OnAnswer | None = None

    @property
    def size(self) -> int:
        """Bytes of a PUBLISH that are ours: topic, payload, correlation data."""
        return publish_size(self.topic, self.payload, self.correlation)


def publish_size(topic: str, payload: bytes, correlation: bytes | None = None) -> int:
    """Bytes of a PUBLISH that are the caller's: topic, payload, correlation data."""
    return len(topic.encode()) + len(payload) + len(correlation or b"")


class Outbox:
    """QoS 1 messages until the broker has acknowledged them, in order, at most ``window`` in flight.

    A retained message that still waits is replaced by a newer one for the same topic: only the last one counts.

    A connection may be lost because of a message. One that was in flight in all but one of :data:`LOSSES` losses is a
    suspect: it is sent again *alone*, after what else waited, on a connection that lived on without it for a while
    (:meth:`calm`). If that is lost then, too, the message is given up: it would cut us off for ever. A connection that
    is lost anyway, by another device of our name or a bad link, says nothing against it.
    """

    def __init__(self, window: int = MAX_IN_FLIGHT) -> None:
        self.window = window
        self.largest_acknowledged = 0
        self._waiting: deque[Outgoing] = deque()
        self._suspects: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}
        self._sent_at: dict[int, float] = {}
        self._losses: dict[str | int, int] = {}
        self._alone: Outgoing | None = None
        self._newest = 0
        self._first_turn: int | None = None
        self._calm = False
        self._taken_here = 0
        self._waiting_bytes = 0

    @property
    def full(self) -> bool:
        """Too much waits for one more message that nobody was promised."""
        return self._waiting_bytes >= MAX_EXPENDABLE_BYTES

    @property
    def suspicious(self) -> bool:
        """A message is suspected to be what connections are lost for."""
        return bool(self._losses)

    @property
    def in_flight(self) -> int:
        """Messages that the broker has not acknowledged on this connection."""
        return len(self._in_flight)

    @property
    def oldest_sent(self) -> float | None:
        """Since when the broker owes us an acknowledgement."""
        return min(self._sent_at.values(), default=None)

    @property
    def largest_acknowledged_here(self) -> int:
        """Of this connection, in bytes; 0 before the first."""
        return self._taken_here

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects) + len(self._in_flight)

    def put(self, message: Outgoing) -> None:
        """Add a message; it takes the place of a waiting retained one with the same topic."""
        self._newest = max(self._newest, message.number)
        self._waiting_bytes += _size(message)
        if message.retain:
            for queue in (self._waiting, self._suspects):
                for index, waiting in enumerate(queue):
                    if waiting.retain and waiting.topic == message.topic:
                        self._waiting_bytes -= _size(waiting)
                        queue[index] = message
                        return
        self._waiting.append(message)

    def take(self) -> Outgoing | None:
        """The next message to send, if there is one and the window has room; must be followed by :meth:`sent` or
        :meth:`drop`.
        """
        if self._alone is not None or len(self._in_flight) >= self.window:
            return None
        if self._suspects and self._first_turn is not None:
            # What had waited before goes first, so that a suspect delays nothing; then it, before what is new.
            before = bool(self._waiting) and self._waiting[0].number <= self._first_turn
            if not before:
                return self._take_suspect()
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        self._waiting_bytes -= _size(message)
        return message

    def _take_suspect(self) -> Outgoing | None:
        if self._in_flight or not self._calm:
            return None
        self._alone = message = self._suspects.popleft()
        self._waiting_bytes -= _size(message)
        return message

    def sent(self, message: Outgoing, packet_id: int, at: float = 0.0) -> None:
        """It is in flight as ``packet_id`` since ``at``."""
        self._in_flight[packet_id] = message
        self._sent_at[packet_id] = at

    def drop(self, message: Outgoing) -> None:
        """It is not sent after all, and never will be."""
        self._forget(message)

    def acknowledged(self, packet_id: int, *, taken: bool = True) -> Outgoing | None:
        """The message that the broker has answered (``taken``: it is the broker's now); None for a packet id that is
        none of ours.
        """
        message = self._in_flight.pop(packet_id, None)
        self._sent_at.pop(packet_id, None)
        if message is not None:
            self._forget(message)
            if taken:
                self._taken_here = max(self._taken_here, message.size)
                self.largest_acknowledged = max(self.largest_acknowledged, message.size)
        return message

    def connected(self) -> None:
        """What had to be said at the beginning of a connection waits now; suspects come after it."""
        self._first_turn = self._newest

    def calm(self) -> None:
        """The connection has lasted for a while, with all that is not suspected."""
        self._calm = True

    def connection_lost(self, *, blameless: bool = False, silent: bool = False) -> Outgoing | None:
        """Everything in flight has to be sent again, in the old order; returns a message that is given up instead.

        ``blameless``: the connection ended for a reason that no message of ours can be. ``silent``: nothing came any
        more; then a message counts as suspect only beside a smaller one that was acknowledged on this connection.
        """
        lost, alone = list(self._in_flight.values()), self._alone
        self._in_flight.clear()
        self._sent_at.clear()
        self._alone = self._first_turn = None
        self._calm = False
        again: list[Outgoing] = []
        suspects: list[Outgoing] = []
        given_up: Outgoing | None = None
        for message in lost:
            key = _key(message)
            if not (blameless or (silent and not 0 < self._taken_here < message.size)):
                self._losses[key] = self._losses.get(key, 0) + 1
            losses = self._losses.get(key, 0)
            if losses >= LOSSES and message is alone:
                given_up = message
            elif losses >= LOSSES - 1:
                suspects.append(message)
            else:
                again.append(message)
        self._waiting.extendleft(reversed(again))
        # The smallest first: those at fault for nothing are soon gone, and prove that smaller ones are taken.
        self._suspects = deque(sorted((*suspects, *self._suspects), key=lambda message: message.size))
        self._waiting_bytes += sum(map(_size, (*again, *suspects)))
        self._taken_here = 0
        if given_up is not None:
            self._forget(given_up)
        return given_up

    def _forget(self, message: Outgoing) -> None:
        self._losses.pop(_key(message), None)
        if message is self._alone:
            self._alone = None


def _key(message: Outgoing) -> str | int:
    """A retained document stays the same suspect when a newer one takes its place."""
    return message.topic if message.retain else message.number


def _size(message: Outgoing) -> int:
    return MESSAGE_BYTES + len(message.topic) + len(message.payload) + len(message.correlation or b"")


class AckOrder:
    """Acknowledgements in the order of arrival, as MQTT demands, whatever order the messages are settled in."""

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._settled: set[int] = set()

    def arrived(self, packet_id: int) -> None:
        """A message came in that has to be acknowledged."""
        self._open.append(packet_id)

    def settle(self, packet_id: int) -> list[int]:
        """``packet_id`` may be acknowledged; returns those to acknowledge now, in order."""
        self._settled.add(packet_id)
        ready: list[int] = []
        while self._open and self._open[0] in self._settled:
            first = self._open.popleft()
            self._settled.discard(first)
            ready.append(first)
        return ready
