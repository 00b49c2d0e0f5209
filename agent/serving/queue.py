"""Who is next: a bounded queue with priorities that age, fair across clients. Pure: the clock is handed in.

Each client puts its own most urgent request forward; a request rises one class for every :data:`AGING_SECONDS` it has
waited, so that nothing waits for ever. Among those the most urgent class is served first, where waiting counts only
from the client's last turn on: a flood that is served again and again does not grow more urgent by being long. Within
a class the client that was served least goes first (start-time fair queueing: a client that comes back does not get
credit for having been away), then the older request.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

from msgspec import Struct

AGING_SECONDS = 5.0
"""Nine classes: the least urgent request overtakes a stream of the most urgent ones after 45 seconds."""

MAX_BYTES = 32 << 20
"""Of requests that wait, as they came in; they take about three times that in memory. One client may have half."""

T = TypeVar("T")


class Waiting(Struct, Generic[T], frozen=True):
    """``deadline`` and ``since`` on the clock that the queue is asked with; higher ``priority`` is more urgent.

    ``size`` in bytes.
    """

    client: str
    item: T
    priority: int
    since: float
    number: int
    deadline: float | None = None
    size: int = 0


class Reservation(Struct, frozen=True):
    """What is on its way in: so many requests with so many bytes."""

    count: int = 0
    size: int = 0


NOTHING = Reservation()


class RequestQueue(Generic[T]):
    """At most ``limit`` requests wait, at most ``client_limit`` of one client; together at most ``max_bytes``, of one
    client half of that.
    """

    def __init__(self, limit: int, client_limit: int, max_bytes: int = MAX_BYTES) -> None:
        self.limit = limit
        self.client_limit = client_limit
        self.max_bytes = max_bytes
        self._waiting: dict[int, Waiting[T]] = {}
        self._by_client: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._served: dict[str, float] = {}
        self._turns: dict[str, float] = {}
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter([waiting.item for waiting in self._waiting.values()])

    def has_room(
        self, client: str, size: int = 0, *, reserved: Reservation = NOTHING, own: Reservation = NOTHING
    ) -> bool:
        """Whether one more of ``client`` may wait, beside all that is ``reserved`` and its ``own`` among that."""
        return (
            len(self._waiting) + reserved.count < self.limit
            and self._by_client.get(client, 0) + own.count < self.client_limit
            and sum(self._bytes.values()) + reserved.size + size <= self.max_bytes
            and self._bytes.get(client, 0) + own.size + size <= self.max_bytes // 2
        )

    def put(self, waiting: Waiting[T]) -> None:
        """Let it wait; the caller asked :meth:`has_room` (what was accepted already is never rejected)."""
        if not self._by_client.get(waiting.client):
            self._served[waiting.client] = max(self._served.get(waiting.client, 0.0), self._clock)
        self._waiting[waiting.number] = waiting
        self._by_client[waiting.client] = self._by_client.get(waiting.client, 0) + 1
        self._bytes[waiting.client] = self._bytes.get(waiting.client, 0) + waiting.size

    def peek(self, now: float) -> T | None:
        """What :meth:`take` would give."""
        first = self._first(now)
        return None if first is None else first.item

    def _first(self, now: float) -> Waiting[T] | None:
        heads: dict[str, Waiting[T]] = {}
        for waiting in self._waiting.values():
            head = heads.get(waiting.client)
            if head is None or _among_own(waiting, now) < _among_own(head, now):
                heads[waiting.client] = waiting
        return min(heads.values(), key=lambda waiting: self._rank(waiting, now), default=None)

    def take(self, now: float) -> T | None:
        """The next one to run; its client moves back by one request."""
        first = self._first(now)
        if first is None:
            return None
        self._clock = self._served[first.client]
        self._served[first.client] += 1.0
        self._turns[first.client] = now
        self.remove(first.number)
        return first.item

    def remove(self, number: int) -> T | None:
        """Take it out, wherever it stands."""
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return None
        self._by_client[waiting.client] -= 1
        self._bytes[waiting.client] -= waiting.size
        if not self._by_client[waiting.client]:
            del self._by_client[waiting.client]
            del self._bytes[waiting.client]
            self._turns.pop(waiting.client, None)
            self._forget_idle_clients()
        return waiting.item

    def position(self, number: int, now: float) -> int:
        """How many would be taken before it if nothing changed; 0 is next."""
        return next(position for position, waiting in enumerate(self._ordered(now)) if waiting.number == number)

    def in_order(self, now: float) -> list[T]:
        """All that wait, as they would be taken one after the other from now on if nothing changed."""
        return [waiting.item for waiting in self._ordered(now)]

    def _ordered(self, now: float) -> list[Waiting[T]]:
        own: dict[str, list[Waiting[T]]] = {}
        for waiting in sorted(self._waiting.values(), key=lambda one: _among_own(one, now), reverse=True):
            own.setdefault(waiting.client, []).append(waiting)
        heap = [(self._rank(mine[-1], now), mine) for mine in own.values()]
        heapq.heapify(heap)
        found: list[Waiting[T]] = []
        while heap:
            (_, served, _), mine = heapq.heappop(heap)
            found.append(mine.pop())
            if mine:
                # It has just had its turn, and moved back.
                heapq.heappush(heap, ((-mine[-1].priority, served + 1.0, mine[-1].number), mine))
        return found

    def expired(self, now: float) -> list[T]:
        """Take out those whose deadline has passed."""
        late = [w.number for w in self._waiting.values() if w.deadline is not None and w.deadline <= now]
        return [item for number in late if (item := self.remove(number)) is not None]

    def next_deadline(self) -> float | None:
        """The earliest deadline of those that wait."""
        return min((w.deadline for w in self._waiting.values() if w.deadline is not None), default=None)

    def _rank(self, waiting: Waiting[T], now: float) -> tuple[int, float, int]:
        since = max(waiting.since, self._turns.get(waiting.client, waiting.since))
        aged = waiting.priority + int((now - since) / AGING_SECONDS)
        return -aged, self._served[waiting.client], waiting.number

    def _forget_idle_clients(self) -> None:
        # Behind the clock they would be set to it anyway when they come back.
        if len(self._served) > 4 * (len(self._by_client) + 16):
            self._served = {
                client: served
                for client, served in self._served.items()
                if client in self._by_client or served > self._clock
            }


def _among_own(waiting: Waiting[T], now: float) -> tuple[int, int]:
    """Its rank among the requests of its client."""
    return -(waiting.priority + int((now - waiting.since) / AGING_SECONDS)), waiting.number
