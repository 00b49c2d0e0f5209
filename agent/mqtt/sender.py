"""What we want the broker to have: at least once through the outbox, at most once beside it; and what it refuses."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable

from agent.mqtt.link import PACKET_OVERHEAD, Answered, Link, publish_properties
from agent.mqtt.loss import Loss
from agent.mqtt.outbox import MAX_IN_FLIGHT, OnAnswer, Outbox, Outgoing, Undeliverable, publish_size
from agent.mqtt.size_limit import FoundLimit, SizeLimit
from agent.observers import Observers
from agent.systemd.journal import fields

log = logging.getLogger("edge_agent.mqtt")

ACKNOWLEDGE_SECONDS = 120.0
"""A broker, or a proxy before it, that lives and does not acknowledge a message for so long has lost it."""

CALM_SECONDS = 2.0
"""A suspect is sent on a connection that is as old: one that is contested, or on a bad link, is lost before."""

MAX_REFUSED = 100
"""Topics that are remembered for their refusal; reply topics have no end."""


class Sender:
    """Outlives connections: what one did not deliver goes out on the next, except what connections are lost for.

    ``on_given_up`` hears of every message that the broker never gets, ``on_limit`` what became known of the largest one
    that it takes.
    """

    def __init__(self, limit: SizeLimit, *, wall: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self.on_given_up: Observers[[Undeliverable]] = Observers()
        self.on_limit: Observers[[FoundLimit | None]] = Observers()
        self._wall = wall
        self._numbers = itertools.count(1)
        self._link: Link | None = None
        self._sending_until = 0.0
        self.outbox = Outbox()
        self.idle = asyncio.Event()
        self.refused: dict[str, str] = {}

    @property
    def writable(self) -> bool:
        """Connected, and the socket takes data: the moment to send frames."""
        return self._link is not None and not self._link.writing

    @property
    def full(self) -> bool:
        """So much waits for the broker that what nobody was promised should not be added."""
        return self.outbox.full

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation: bytes | None = None,
        on_answer: OnAnswer | None = None,
    ) -> None:
        """Deliver at least once, now or after a reconnect. ``on_answer`` is called later, once the broker has answered
        or will never get it; not for a retained document, whose place a newer one may take.
        """
        self.idle.clear()
        self.outbox.put(Outgoing(next(self._numbers), topic, payload, retain, correlation, on_answer))
        self.pump()

    def publish_once(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> None:
        """Send at QoS 0 if connected and the socket is not backed up for long; else it is gone."""
        link = self._link
        if link is None:
            return
        size = publish_size(topic, payload, correlation)
        given_up = link.too_large(topic, payload, correlation) or self.limit.check(topic, size, self._wall(), once=True)
        if given_up is not None:
            self.note_refusal(topic, given_up.why)
            return
        if size > self.outbox.largest_acknowledged:
            link.once.sent_once(size, topic)
        link.publish_once(topic, payload, publish_properties(link.protocol, correlation))

    def open(self, link: Link, window: int) -> None:
        """``link`` is there; what waits goes out with the next :meth:`pump`."""
        self._link = link
        self.outbox.window = max(1, min(MAX_IN_FLIGHT, window))
        if link.max_packet is not None and self.limit.taken(link.max_packet - PACKET_OVERHEAD):
            self.on_limit.notify(None)

    def opened(self) -> None:
        """All that had to be said at the beginning has been handed over."""
        self.outbox.connected()
        self.pump()
        asyncio.get_running_loop().call_later(CALM_SECONDS, self._calm, self._link)

    def _calm(self, link: Link | None) -> None:
        if link is not None and self._link is link:
            self.outbox.calm()
            self.pump()

    def pump(self) -> None:
        """Send what may be sent now."""
        link = self._link
        if link is None:
            return
        now = asyncio.get_running_loop().time()
        while (message := self.outbox.take()) is not None:
            given_up = link.too_large(message.topic, message.payload, message.correlation) or self.limit.check(
                message.topic, message.size, self._wall()
            )
            if given_up is not None:
                self.outbox.drop(message)
                self._give_up(message, given_up)
                continue
            info = link.client.publish(
                message.topic,
                message.payload,
                1,
                message.retain,
                publish_properties(link.protocol, message.correlation),
            )
            self.outbox.sent(message, info.mid, now)
            link.once.sent(info.mid)
        link.watch_writes()

    def take_answers(self, link: Link) -> None:
        """Account for what the broker acknowledged or refused."""
        answers, link.delivered = link.delivered, []
        for answer in answers:
            self._take(link, answer)
        if answers:
            self.pump()
            if not len(self.outbox):
                self.idle.set()

    def _take(self, link: Link, answer: Answered) -> None:
        before = link.once.acknowledged(answer.packet_id)
        message = self.outbox.acknowledged(answer.packet_id, taken=not answer.failed)
        if message is None:
            return
        if answer.too_large:
            # It said so: no smaller one has to be taken first.
            self._give_up(message, self._learn(message, acknowledged=1))
            return
        if answer.failed:
            self.note_refusal(message.topic, answer.reason)
            log.error("the broker refuses what we publish to %s: %s", message.topic, answer.reason)
        elif self.limit.taken(max(message.size, before)):
            log.info("the broker takes messages of %s bytes after all", f"{message.size:,}")
            self.on_limit.notify(None)
        try:
            if message.on_answer is not None:
                message.on_answer(None)
        except Exception:
            log.exception("what the broker accepted could not be recorded")

    def lose(self, link: Link, loss: Loss) -> None:
        """``link`` is gone; what was in flight waits again, or is given up."""
        if self._link is not link:
            return
        self._link = None
        outbox = self.outbox
        acknowledged, nothing_else = outbox.largest_acknowledged_here, not outbox.in_flight
        message = outbox.connection_lost(blameless=loss.blameless, silent=loss.kind == "silent")
        if message is not None:
            self._give_up(message, self._learn(message, acknowledged))
        elif nothing_else and not loss.blameless and (largest := link.once.largest()) is not None:
            size, topic = largest
            if size > outbox.largest_acknowledged and self.limit.refused_once(size, self._wall()):
                given_up = Undeliverable(topic, size)
                self.note_refusal(topic, given_up.why)
                asyncio.get_running_loop().call_soon(self.on_given_up.notify, given_up)
                log.warning(
                    "the broker ends the connection when it gets %s bytes on %s: left out from now on",
                    f"{size:,}", topic, extra=fields(topic=topic, bytes=size),
                )  # fmt: skip

    @property
    def suspicious(self) -> bool:
        """A message may be what the connection is lost for."""
        return bool(self.outbox.in_flight) or (self._link is not None and self._link.once.largest() is not None)

    def overdue(self, link: Link, now: float) -> bool:
        """The broker owes an acknowledgement for too long."""
        if link.writing:
            self._sending_until = now
        oldest = self.outbox.oldest_sent
        return oldest is not None and now - max(oldest, self._sending_until) > ACKNOWLEDGE_SECONDS

    def _learn(self, message: Outgoing, acknowledged: int) -> Undeliverable:
        known = self.limit.found
        given_up = self.limit.refused(message.topic, message.size, acknowledged, self._wall())
        if self.limit.found != known:
            self.on_limit.notify(self.limit.found)
        return given_up

    def _give_up(self, message: Outgoing, given_up: Undeliverable) -> None:
        # Sent all the same it would end every connection, for ever.
        known = message.topic in self.refused
        self.note_refusal(message.topic, given_up.why)
        log.log(
            logging.DEBUG if known else logging.WARNING,
            "%s is given up: %s", message.topic, given_up.why,
            extra=fields(topic=message.topic, bytes=message.size),
        )  # fmt: skip
        # Later: who publishes has to note first that it did.
        loop = asyncio.get_running_loop()
        if message.on_answer is not None:
            loop.call_soon(message.on_answer, given_up)
        loop.call_soon(self.on_given_up.notify, given_up)

    def note_refusal(self, topic: str, why: str) -> None:
        """The broker does not let us publish or subscribe to ``topic``."""
        if topic in self.refused or len(self.refused) < MAX_REFUSED:
            self.refused[topic] = why
