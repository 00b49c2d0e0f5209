"""The largest message that the broker takes, where it does not say so but cuts whoever sends more. Pure."""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from agent.mqtt.outbox import LOSSES, Undeliverable
from contract.system.backoff import doubled

FIRST_HOLD_SECONDS = 60.0
LONGEST_HOLD_SECONDS = 86400.0
"""A broker's limit is a line of its configuration, but a broken link may look like one: after a minute a larger message
may try whether it holds, and each time that it does the next attempt is twice as far away, up to a day.
"""

MAX_TOPICS = 64
"""Retained documents and events of a device: a few dozen topics with Home Assistant."""


class FoundLimit(Struct, frozen=True):
    """Messages of ``refused_bytes`` and more cut connections: found ``times`` times, last at ``found_at`` (Unix
    seconds).
    """

    refused_bytes: int
    found_at: float
    times: int = 1

    def holds(self, size: int, now: float) -> bool:
        """Whether a message of ``size`` bytes is not even tried."""
        held = doubled(FIRST_HOLD_SECONDS, LONGEST_HOLD_SECONDS, self.times - 1)
        return size >= self.refused_bytes and 0 <= now - self.found_at < held

    def again(self, size: int, now: float) -> FoundLimit:
        """Found once more, at a message of ``size`` bytes."""
        return FoundLimit(min(size, self.refused_bytes), now, self.times + 1)


class SizeLimit:
    """What connections were lost for, and what is therefore not sent any more.

    A limit for all messages is believed only where a smaller one was acknowledged on the connection that was lost for
    a larger one; else the topic may be the reason, and only that is avoided.
    """

    def __init__(self, found: FoundLimit | None = None) -> None:
        self.found = found
        self.once: FoundLimit | None = None
        self._once_lost: list[int] = []
        self._topics: OrderedDict[str, FoundLimit] = OrderedDict()

    def check(self, topic: str, size: int, now: float, *, once: bool = False) -> Undeliverable | None:
        """Why a message is not to be sent; None if it may."""
        for limit in (self.found, self.once if once else None):
            if limit is not None and limit.holds(size, now):
                return Undeliverable(topic, size)
        if (avoided := self._topics.get(topic)) is not None and avoided.holds(size, now):
            return Undeliverable(topic, size, by_size=False)
        return None

    def refused(self, topic: str, size: int, acknowledged: int, now: float) -> Undeliverable:
        """A message was given up on a connection that had acknowledged one of ``acknowledged`` bytes (0: none)."""
        if 0 < acknowledged < size:
            self.found = FoundLimit(size, now) if self.found is None else self.found.again(size, now)
            return Undeliverable(topic, size)
        known = self._topics.pop(topic, None)
        self._topics[topic] = FoundLimit(size, now) if known is None else known.again(size, now)
        while len(self._topics) > MAX_TOPICS:
            self._topics.popitem(last=False)
        return Undeliverable(topic, size, by_size=False)

    def refused_once(self, size: int, now: float) -> bool:
        """A connection was lost after a QoS 0 message of so many bytes, larger than any that was acknowledged, with
        nothing else under way; whether that has now happened often enough to send none of that size any more.
        """
        self._once_lost.append(size)
        if len(self._once_lost) < LOSSES:
            return False
        self.once = FoundLimit(min(self._once_lost), now)
        self._once_lost.clear()
        return True

    def taken(self, size: int) -> bool:
        """The broker took a message of ``size`` bytes; whether that disproves what was believed."""
        self._once_lost = [lost for lost in self._once_lost if lost > size]
        if self.once is not None and size >= self.once.refused_bytes:
            self.once = None
        if self.found is not None and size >= self.found.refused_bytes:
            self.found = None
            return True
        return False
