"""A session with a broker that comes back by itself: what to send, what has arrived, what is owed.

What survives a connection lies in :mod:`agent.mqtt.sender` and :mod:`agent.mqtt.outbox`; each connection is a
:class:`~agent.mqtt.link.Link` of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable, Sequence
from functools import partial

from agent.mqtt.connector import CONNECT_SECONDS, Connector
from agent.mqtt.handler import Handler, Session
from agent.mqtt.link import Link, Received, make_client, received
from agent.mqtt.loss import Loss, Rivalry
from agent.mqtt.outbox import MAX_IN_FLIGHT, OnAnswer
from agent.mqtt.sender import ACKNOWLEDGE_SECONDS, Sender
from agent.mqtt.settings import BrokerSettings, Protocol
from agent.mqtt.size_limit import FoundLimit, SizeLimit
from agent.mqtt.sockets import Stream
from agent.mqtt.subscriber import Subscriber
from agent.systemd.journal import fields
from contract.errors import ConfigInvalid, SourceUnavailable
from contract.system.backoff import Backoff

log = logging.getLogger("edge_agent.mqtt")

FLUSH_SECONDS = 3.0
"""What may still be delivered when we leave."""

FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 60.0

LASTING_SECONDS = 10.0
"""A connection that was lost earlier counts as one more failure: whoever is cut off at once must not hammer."""

STANDBY_SECONDS = 3600.0
"""So long somebody else may have our name before we push it out again: what looks like one may be a leftover."""

STANDBY_CHECK_SECONDS = 30.0
"""Between two looks whether the other one is still there."""

SUSPICIOUS_LOSSES = 2
"""Losses in a row that look as if a rival had taken the connection: once is a coincidence."""

RIVAL_FIRST_SECONDS = 2.0
RIVAL_MAX_SECONDS = 300.0

MAX_TURN_SECONDS = MAX_WAIT_SECONDS + CONNECT_SECONDS
"""One round of the connection's loop takes no longer, whatever the broker does."""


class Connection:
    """Keeps a session with the broker for as long as :meth:`run` runs, and tells ``handler`` what becomes of it.

    ``sender`` is what we want the broker to have; without one there is nothing yet.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        session: Session,
        handler: Handler,
        sender: Sender | None = None,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._settings = settings
        self._session = session
        self._handler = handler
        self._level = logging.DEBUG if session.quiet else logging.INFO
        self._sender = sender or Sender(SizeLimit())
        self._backoff = Backoff(FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS, uniform)
        self._rival_backoff = Backoff(RIVAL_FIRST_SECONDS, RIVAL_MAX_SECONDS, uniform)
        self._rivalry = Rivalry()
        self._subscriber = Subscriber(session.subscriptions, self._sender)
        self._opener = Connector(settings, self._make_link)
        self._link: Link | None = None
        self.turns = 0
        """Rises while :meth:`run` goes round, at least once in :data:`MAX_TURN_SECONDS`, connected or not."""
        self.problem = ""
        """Why there is no connection; empty while there is one."""

    @property
    def unreachable(self) -> bool:
        """There is no connection, and no other version of MQTT is about to be tried."""
        return bool(self.problem) and not self._opener.trying_versions

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def client_id(self) -> str:
        return self._session.client_id

    @property
    def address(self) -> str:
        """Where the broker is, or is tried."""
        return self._opener.endpoint.address

    @property
    def protocol(self) -> str:
        """The version of MQTT that is spoken, or tried."""
        return self._opener.protocol

    @property
    def refused(self) -> dict[str, str]:
        """Topics the broker refused to let us publish or subscribe, and its reason."""
        return self._sender.refused

    @property
    def limit(self) -> FoundLimit | None:
        """The smallest message that the broker was found not to take."""
        return self._sender.limit.found

    @property
    def rival(self) -> str:
        """One sentence about another client that uses our client id; empty while nothing speaks for one."""
        verdict = self._rivalry.verdict(asyncio.get_running_loop().time())
        return self.rival_text("" if verdict == "certain" else "probably ") if verdict else ""

    def rival_text(self, probably: str) -> str:
        """The sentence."""
        return f"another client is {probably}connected as {self._session.client_id}: give each device a name of its own"

    @property
    def filters(self) -> list[str]:
        """What we subscribe to."""
        return list(self._subscriber.wanted)

    @property
    def subscribed(self) -> bool:
        """The broker has answered our subscriptions on this connection."""
        return self._link is not None and self._link.subscribed

    @property
    def writable(self) -> bool:
        """Connected, and the socket takes data: the moment to send frames."""
        return self._link is not None and not self._link.writing

    @property
    def undelivered(self) -> int:
        """QoS 1 messages that the broker has not acknowledged."""
        return len(self._sender.outbox)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation: bytes | None = None,
        on_answer: OnAnswer | None = None,
    ) -> None:
        """Deliver at least once, now or after a reconnect; see :meth:`Sender.publish`."""
        self._sender.publish(topic, payload, retain=retain, correlation=correlation, on_answer=on_answer)

    def publish_once(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> None:
        """Send at QoS 0 if connected and the socket is not backed up for long; else it is gone."""
        self._sender.publish_once(topic, payload, correlation=correlation)

    def acknowledge(self, received: Received) -> None:
        """Tell the broker that ``received`` is ours now; without effect if that connection is gone."""
        owner, packet_id = received.receipt
        link = self._link
        if link is None or owner is not link or packet_id == 0:
            return
        try:
            for ready in link.ack_order.settle(packet_id):
                link.client.ack(ready, 1)
                link.once.settled(received.topic, asyncio.get_running_loop().time())
            link.watch_writes()
        except Exception:
            # What is not acknowledged comes again on another connection; on this one it would hold up the others.
            log.exception("a message could not be acknowledged")
            link.end(Loss("a message could not be acknowledged", "ours"))

    def listen(self, filters: Sequence[str]) -> None:
        """Subscribe to exactly ``filters`` from now on."""
        self._subscriber.change(self._link, filters)

    async def run(self) -> None:
        """Connect, serve, reconnect; until cancelled."""
        problem = ""
        while True:
            self.turns += 1
            try:
                link = await self._connect()
                address = self.address
            except (SourceUnavailable, ConfigInvalid, OSError) as error:
                address = self._settings.address
                self._rivalry.failed()
                self.problem = why = str(error)
            else:
                self.problem = ""
                why = await self._serve(link)
                problem = problem if self._rivalry.losses else ""
            if why != problem:
                level = logging.WARNING if self._level == logging.INFO else logging.DEBUG
                log.log(level, "no connection to the broker %s: %s", address, why, extra=fields(broker=address))
                problem = why
            await self._wait()

    @property
    def contested(self) -> bool:
        """The last connection ended as if another client had taken it."""
        return self._rivalry.losses > 0

    def note_rival(self) -> None:
        """Another client was seen at work under our name."""
        before = self.rival
        self._rivalry.seen(asyncio.get_running_loop().time())
        if self.rival != before:
            log.error("%s", self.rival)
            self._handler.on_rivalry()

    async def _wait(self) -> None:
        """Before the next attempt: longer each time, and for long where somebody else is at work under our name."""
        if self._rivalry.losses < SUSPICIOUS_LOSSES:
            self._rival_backoff.reset()
            await self._pause(self._backoff.after_failure())
            return
        loop = asyncio.get_running_loop()
        give_way_until = loop.time() + STANDBY_SECONDS
        while True:
            # First of all: whoever pushed us out has to say that it is there.
            await self._pause(
                min(self._rival_backoff.after_failure(), STANDBY_CHECK_SECONDS if self.problem else math.inf)
            )
            seen = await self._handler.is_rival_at_work()
            if seen is False:
                self._rivalry.disproved()
            if not seen:
                return
            self.note_rival()
            self.problem = self.rival
            if loop.time() > give_way_until:
                return

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            self.turns += 1
            await asyncio.sleep(min(left, MAX_WAIT_SECONDS))

    async def _serve(self, link: Link) -> str:
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            while not link.lost.done():
                self.turns += 1
                await asyncio.wait([link.lost], timeout=min(MAX_WAIT_SECONDS, max(1.0, self._settings.keepalive / 4)))
                if not link.lost.done():
                    link.guard(link.client.loop_misc)
                    link.guard(lambda: self._subscriber.ask_again(link, loop.time()))
                    if self._sender.overdue(link, loop.time()):
                        link.end(Loss("it does not acknowledge what we publish", "silent"))
                    if link.on_subscribed is not None and loop.time() - since > ACKNOWLEDGE_SECONDS:
                        link.end(Loss("it does not answer our subscriptions", "silent"))
            return self._examine_loss(link, link.lost.result(), loop.time() - since)
        finally:
            self._drop(link)

    def _examine_loss(self, link: Link, loss: Loss, lived: float) -> str:
        """Draw conclusions from how a connection ended; why it did, for people."""
        self._opener.lost()
        if lived >= LASTING_SECONDS:
            self._backoff.reset()
        else:
            self._opener.turn()
        subscribing = self._subscriber.lost(link, blameless=loss.blameless)
        if self._level == logging.DEBUG:
            return loss.why
        before, losses = self.rival, self._rivalry.losses
        now = asyncio.get_running_loop().time()
        acknowledged = link.once.just_settled(now)
        suspicious = subscribing or bool(acknowledged) or self._sender.suspicious
        self._rivalry.lost(loss, lived, now, suspicious=suspicious)
        if self.rival != before:
            log.error("%s", self.rival)
        if self.rival != before or self._rivalry.losses > losses:
            self._handler.on_rivalry()
        if self.rival and self._rivalry.losses:
            return self.rival
        return f"{loss.why} after we acknowledged a message on {acknowledged}" if acknowledged else loss.why

    async def close(self) -> None:
        """Deliver what the broker takes within :data:`FLUSH_SECONDS`, then say goodbye. Where something is left, go
        without: then the last will says for us what may not have come through.
        """
        link = self._link
        if link is None:
            return
        if self.undelivered:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._sender.idle.wait()
        if not self.undelivered:
            link.guard(link.client.disconnect)
        self._drop(link)

    async def _connect(self) -> Link:
        """Connect and subscribe.

        Raises:
            SourceUnavailable, OSError: the broker cannot be reached or refuses us.
            ConfigInvalid: a file of ours cannot be read now; it could be when the agent started.
        """
        opened = await self._opener.open(self._turn)
        link, properties = opened.link, opened.properties
        link.max_packet = getattr(properties, "MaximumPacketSize", None)
        link.shares = getattr(properties, "SharedSubscriptionAvailable", 1) != 0
        link.up = True
        self._link = link
        log.log(
            self._level, "connected to the broker %s", self.address,
            extra=fields(broker=self.address, mqtt=link.protocol),
        )  # fmt: skip

        def begin() -> None:
            self._sender.open(link, getattr(properties, "ReceiveMaximum", MAX_IN_FLIGHT))
            self._handler.on_up(opened.session_present)
            self._sender.opened()

        self.refused.clear()
        held_back = self._subscriber.suspicious
        if held_back:
            link.on_subscribed = begin
        self._subscriber.begin(link)
        if not held_back:
            begin()
        self._dispatch(link)
        return link

    def _turn(self) -> None:
        self.turns += 1

    def _make_link(self, sock: Stream, protocol: Protocol) -> Link:
        session = self._session
        client = make_client(self._settings, session.client_id, protocol, clean=session.clean, will=session.will)
        link = Link(
            client, sock, protocol, on_read=self._dispatch, on_writable=lambda _link: self._handler.on_writable()
        )
        client.on_subscribe = lambda _c, _u, number, reasons, _p: self._subscriber.answer(link, number, reasons)
        return link

    def _dispatch(self, link: Link) -> None:
        self._sender.take_answers(link)
        arrived, link.arrived = link.arrived, []
        for message_in in arrived:
            try:
                arrival = received(link, message_in)
                if arrival.receipt[1]:
                    link.ack_order.arrived(arrival.receipt[1])
                self._handler.on_message(arrival, partial(self.acknowledge, arrival))
            except Exception:
                # Whoever takes messages answers for what goes wrong with them. This is for what never got there: the
                # messages after it are not to be lost with it, and on the next connection it comes again.
                log.exception("a message could not be processed")
                link.end(Loss("a message could not be processed", "ours"))

    def _drop(self, link: Link) -> None:
        link.close()
        if self._link is link:
            self._link = None
            self._sender.lose(link, link.lost.result())
            self._handler.on_down(link.lost.result().why)
