"""A session with a broker that comes back by itself: what to send, what has arrived, what is owed.

What survives a connection (unacknowledged messages, waiting times) lies in :mod:`agent.delivery`; each connection is a
:class:`~agent.mqtt.link.Link` of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any

from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.broker_settings import BrokerSettings
from agent.delivery import MAX_IN_FLIGHT, Backoff, Outbox, Outgoing
from agent.mqtt.link import Link, Received, Will, lacks, make_client, publish_properties, received
from agent.mqtt.sockets import open_socket
from contract.errors import ConfigInvalid, SourceUnavailable

log = logging.getLogger("edge_agent.mqtt")

CONNECT_SECONDS = 15.0
"""TCP, TLS and CONNACK together; a mobile link takes seconds, a dead broker must not hold us for ever."""

FLUSH_SECONDS = 3.0
"""What may still be delivered when we leave."""

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0

LONGEST_TURN_SECONDS = LONGEST_WAIT_SECONDS + CONNECT_SECONDS
"""One round of the connection's loop takes no longer, whatever the broker does."""


class Connection:
    """Keeps a session with the broker for as long as :meth:`run` runs.

    ``on_message`` gets every message and must see to it that it is acknowledged; ``on_up`` is called after every
    CONNACK (with "session present"), ``on_down`` after every loss, ``on_delivered`` with the number that
    :meth:`publish` gave, once the broker has the message. All are called in the event loop and must not block.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        *,
        will: Will | None = None,
        subscriptions: Sequence[str] = (),
        clean: bool = False,
        on_message: Callable[[Received], None],
        on_up: Callable[[bool], None] = lambda _present: None,
        on_down: Callable[[str], None] = lambda _why: None,
        on_delivered: Callable[[int], None] = lambda _number: None,
        on_oversized: Callable[[int, int], None] = lambda _number, _most: None,
        on_writable: Callable[[], None] = lambda: None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._subscriptions = list(subscriptions)
        self._clean = clean
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._on_delivered = on_delivered
        self._on_oversized = on_oversized
        self._on_writable = on_writable
        self._outbox = Outbox()
        self._numbers = itertools.count(1)
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, uniform)
        self._link: Link | None = None
        self._idle = asyncio.Event()
        self.refused: dict[str, str] = {}
        """Topics the broker refused to let us publish or subscribe, and its reason."""
        self.turns = 0
        """Rises while :meth:`run` goes round, at least once in :data:`LONGEST_TURN_SECONDS`, connected or not."""
        self.problem = ""
        """Why there is no connection; empty while there is one."""

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def filters(self) -> list[str]:
        """What we subscribe to."""
        return list(self._subscriptions)

    @property
    def subscribed(self) -> bool:
        """The broker has answered our subscriptions on this connection."""
        return self._link is not None and self._link.subscribed

    @property
    def writable(self) -> bool:
        """Connected, and the socket takes data: the moment to send frames."""
        return self._link is not None and not self._link.writing

    @property
    def full(self) -> bool:
        """So much waits for the broker that what nobody was promised should not be added."""
        return self._outbox.full

    @property
    def undelivered(self) -> int:
        """QoS 1 messages that the broker has not acknowledged."""
        return len(self._outbox)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, correlation: bytes | None = None) -> int:
        """Deliver at least once, now or after a reconnect; the number that ``on_delivered`` will say."""
        number = next(self._numbers)
        self._idle.clear()
        self._outbox.put(Outgoing(number, topic, payload, retain, correlation))
        self._pump()
        return number

    def publish_once(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> None:
        """Send at QoS 0 if connected and the socket is not backed up for long; else it is gone."""
        link = self._link
        if link is not None and link.takes(topic, payload, correlation):
            link.publish_once(topic, payload, publish_properties(self._settings, correlation))

    def acknowledge(self, received: Received) -> None:
        """Tell the broker that ``received`` is ours now; without effect if that connection is gone."""
        owner, packet_id = received.receipt
        link = self._link
        if link is None or owner is not link or packet_id == 0:
            return
        try:
            for ready in link.ack_order.settle(packet_id):
                link.client.ack(ready, 1)
            link.watch_writes()
        except Exception:
            # What is not acknowledged comes again on another connection; on this one it would hold up the others.
            log.exception("a message could not be acknowledged")
            link.end("a message could not be acknowledged")

    def listen(self, filters: Sequence[str]) -> None:
        """Subscribe to exactly ``filters`` from now on."""
        dropped = [topic for topic in self._subscriptions if topic not in filters]
        self._subscriptions = list(filters)
        link = self._link
        if link is None:
            return
        if dropped:
            link.client.unsubscribe(dropped)
        if self._subscriptions:
            self._subscribe(link)
        link.watch_writes()

    async def run(self) -> None:
        """Connect, serve, reconnect; until cancelled."""
        said = ""
        while True:
            self.turns += 1
            try:
                link = await self._connect()
            except (SourceUnavailable, ConfigInvalid, OSError) as error:
                self.problem = why = str(error)
            else:
                self._backoff.reset()
                self.problem = said = ""
                why = await self._serve(link)
            if why != said:
                log.warning("no connection to the broker %s: %s", self._settings.address, why)
                said = why
            await asyncio.sleep(self._backoff.next())

    async def _serve(self, link: Link) -> str:
        try:
            while not link.lost.done():
                self.turns += 1
                await asyncio.wait(
                    [link.lost], timeout=min(LONGEST_WAIT_SECONDS, max(1.0, self._settings.keepalive / 4))
                )
                if not link.lost.done():
                    link.guard(link.client.loop_misc)
            return link.lost.result()
        finally:
            self._drop(link)

    async def close(self) -> None:
        """Deliver what the broker takes within :data:`FLUSH_SECONDS`, then say goodbye (no last will)."""
        link = self._link
        if link is None:
            return
        if len(self._outbox):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), FLUSH_SECONDS)
        link.guard(link.client.disconnect)
        self._drop(link)

    async def _connect(self) -> Link:
        """Connect and subscribe.

        Raises:
            SourceUnavailable, OSError: the broker cannot be reached or refuses us.
            ConfigInvalid: a file of ours cannot be read now; it could be when the agent started.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sock = await open_socket(self._settings)
                link = self._open_link(sock)
                try:
                    present, reason, properties = await self._await_connack(link)
                except BaseException:
                    self._drop(link)
                    raise
        except TimeoutError as error:
            raise SourceUnavailable(f"no answer within {CONNECT_SECONDS:.0f} s") from error
        if reason.is_failure:
            self._drop(link)
            raise SourceUnavailable(f"it refused the connection: {reason}")
        missing = lacks(properties)
        if missing:
            self._drop(link)
            raise SourceUnavailable(f"it offers no {missing}, which the device needs")
        link.max_packet = getattr(properties, "MaximumPacketSize", None)
        self._outbox.window = max(1, min(MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MAX_IN_FLIGHT)))
        link.up = True
        self._link = link
        self.refused.clear()
        if self._subscriptions:
            self._subscribe(link)
        log.info("connected to the broker %s", self._settings.address)
        self._on_up(present)
        self._pump()
        self._dispatch(link)
        return link

    async def _await_connack(self, link: Link) -> tuple[bool, Any, Any]:
        waited: list[asyncio.Future[Any]] = [link.connack, link.lost]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if link.connack.done():
            return link.connack.result()
        raise SourceUnavailable(f"it closed the connection: {link.lost.result()}")

    def _open_link(self, sock: socket.socket) -> Link:
        client = make_client(self._settings, self._client_id, clean=self._clean, will=self._will)
        link = Link(client, sock, on_read=self._dispatch, on_writable=lambda _link: self._on_writable())
        client.on_subscribe = lambda _c, _u, _mid, reasons, _p: self._on_subscribed(link, reasons)
        return link

    def _subscribe(self, link: Link) -> None:
        # noLocal and the like do not apply to us; QoS 1 is what requests need.
        if self._settings.protocol == "5":
            link.client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscriptions])
        else:
            link.client.subscribe([(topic, 1) for topic in self._subscriptions])
        link.watch_writes()

    def _on_subscribed(self, link: Link, reasons: list[Any]) -> None:
        link.subscribed = True
        for topic in self._subscriptions:
            self.refused.pop(topic, None)
        for topic, reason in zip(self._subscriptions, reasons, strict=False):
            if reason.is_failure:
                self.refused[topic] = str(reason)
                log.error("the broker refuses the subscription to %s: %s", topic, reason)

    def _pump(self) -> None:
        link = self._link
        if link is None:
            return
        while (message := self._outbox.take()) is not None:
            if not link.takes(message.topic, message.payload, message.correlation):
                # Sent all the same it would end every connection, for ever.
                self.refused[message.topic] = f"the broker takes {link.max_packet:,} bytes at most"
                log.error("%s is given up: the broker takes %s bytes at most", message.topic, f"{link.max_packet:,}")
                # Later: who publishes has to learn the number first.
                asyncio.get_running_loop().call_soon(self._on_oversized, message.number, link.max_packet or 0)
                continue
            info = link.client.publish(
                message.topic,
                message.payload,
                1,
                message.retain,
                publish_properties(self._settings, message.correlation),
            )
            self._outbox.sent(message, info.mid)
        link.watch_writes()

    def _dispatch(self, link: Link) -> None:
        delivered, link.delivered = link.delivered, []
        for packet_id, failed, reason in delivered:
            message = self._outbox.acknowledged(packet_id)
            if message is None:
                continue
            if failed:
                self.refused[message.topic] = reason
                log.error("the broker refuses what we publish to %s: %s", message.topic, reason)
            try:
                self._on_delivered(message.number)
            except Exception:
                log.exception("what the broker has taken could not be noted")
        if delivered:
            self._pump()
            if not len(self._outbox):
                self._idle.set()
        arrived, link.arrived = link.arrived, []
        for message_in in arrived:
            try:
                arrival = received(link, message_in)
                if arrival.receipt[1]:
                    link.ack_order.arrived(arrival.receipt[1])
                self._on_message(arrival)
            except Exception:
                # Whoever takes messages answers for what goes wrong with them. This is for what never got there: the
                # messages after it are not to be lost with it, and on the next connection it comes again.
                log.exception("a message could not be handed on")
                link.end("a message could not be handed on")

    def _drop(self, link: Link) -> None:
        link.close()
        if self._link is link:
            self._link = None
            self._outbox.connection_lost()
            self._on_down(link.lost.result())
