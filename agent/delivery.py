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


class Backoff:
    """Waiting times between attempts: doubling from ``first`` to ``ceiling`` seconds, half of each random.

    The random half keeps a fleet from coming back to a restarted broker in one instant.
    """

    def __init__(self, first: float, ceiling: float, random: Callable[[], float]) -> None:
        self._first = first
        self._ceiling = ceiling
        self._random = random
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        # 2**32 seconds is beyond any ceiling; larger powers would overflow a float in the end.
        whole = min(self._ceiling, self._first * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return whole * (0.5 + 0.5 * self._random())

    def reset(self) -> None:
        """The next failure counts as the first."""
        self._failures = 0


class Outgoing(Struct, frozen=True):
    """A QoS 1 message on its way. ``number`` identifies it to whoever wants to know that it arrived."""

    number: int
    topic: str
    payload: bytes
    retain: bool = False
    correlation: bytes | None = None


class Outbox:
    """QoS 1 messages until the broker has acknowledged them, in order, at most ``window`` in flight.

    A retained message that still waits is replaced by a newer one for the same topic: only the last one counts.
    """

    def __init__(self, window: int = MAX_IN_FLIGHT) -> None:
        self.window = window
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}
        self._waiting_bytes = 0

    @property
    def full(self) -> bool:
        """Too much waits for one more message that nobody was promised."""
        return self._waiting_bytes >= MAX_EXPENDABLE_BYTES

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def put(self, message: Outgoing) -> None:
        """Add a message; it takes the place of a waiting retained one with the same topic."""
        self._waiting_bytes += _size(message)
        if message.retain:
            for index, waiting in enumerate(self._waiting):
                if waiting.retain and waiting.topic == message.topic:
                    self._waiting_bytes -= _size(waiting)
                    self._waiting[index] = message
                    return
        self._waiting.append(message)

    def take(self) -> Outgoing | None:
        """The next message to send, if the window has room; must be followed by :meth:`sent` or :meth:`put_back`."""
        if not self._waiting or len(self._in_flight) >= self.window:
            return None
        message = self._waiting.popleft()
        self._waiting_bytes -= _size(message)
        return message

    def put_back(self, message: Outgoing) -> None:
        """It could not be sent after all."""
        self._waiting.appendleft(message)
        self._waiting_bytes += _size(message)

    def sent(self, message: Outgoing, packet_id: int) -> None:
        """It is in flight as ``packet_id``."""
        self._in_flight[packet_id] = message

    def acknowledged(self, packet_id: int) -> Outgoing | None:
        """The message that the broker now has; None for a packet id that is none of ours."""
        return self._in_flight.pop(packet_id, None)

    def connection_lost(self) -> None:
        """Everything in flight has to be sent again, before what waits, in the old order."""
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._waiting_bytes += sum(map(_size, self._in_flight.values()))
        self._in_flight.clear()


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
