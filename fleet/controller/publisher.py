"""Hands the broker the wishes of the outbox. Only what the broker has acknowledged is marked as sent; whoever dies
between the two sends it again, with the same revision and the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from contract.mqtt.topics import Topics
from fleet.store import outbox
from fleet.store.database import Database
from fleet.store.leader import Leader

BATCH = 100
"""Wishes between two looks at the database: how many are sent again by the next leader at most."""


class Broker(Protocol):
    """What is needed of a connection."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """At QoS 1, until the broker has it.

        Raises:
            SourceUnavailable: it does not take it.
        """


class Publisher:
    """Topics lie below ``root``; ``clock`` gives Unix seconds."""

    def __init__(self, database: Database, leader: Leader, root: str, clock: Callable[[], float]) -> None:
        self._database = database
        self._leader = leader
        self._root = root
        self._clock = clock

    def send_unheard_again(self, before: float) -> int:
        """Mark as unsent what devices that are there have not followed since ``before``; how many.

        Raises:
            LeadershipLost: somebody else sends. StoreBroken, StoreFull, SourceUnavailable: the database.
        """
        with self._database.read() as connection:
            if not outbox.unheard(connection, before):
                return 0
        with self._database.write() as connection:
            self._leader.fence(connection)
            found = outbox.unheard(connection, before)
            outbox.send_again(connection, found)
        return len(found)

    def send(self, broker: Broker) -> int:
        """Send what waits; how many wishes that were.

        Raises:
            SourceUnavailable: the broker or the database is away. LeadershipLost: somebody else sends.
            StoreBroken, StoreFull: the database.
        """
        count = 0
        while True:
            self._leader.confirm()
            with self._database.read() as connection:
                wishes = outbox.unsent(connection, BATCH)
            if not wishes:
                return count
            for wish in wishes:
                broker.publish(Topics(wish.device, self._root).desired, wish.payload, retain=True)
                count += 1
            with self._database.write() as connection:
                self._leader.fence(connection)
                outbox.mark_sent(connection, wishes, self._clock())
