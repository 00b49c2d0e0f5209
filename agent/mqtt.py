"""The agent's only way to a broker: paho driven by asyncio, without threads and without blocking.

paho encodes and decodes packets; what survives a connection (unacknowledged messages, waiting times) lies in
:mod:`agent.delivery`. Every connection gets a paho client of its own, so that an acknowledgement can never reach
another connection than the one its message came from.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from paho.mqtt.client import Client, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.broker_settings import BrokerSettings, open_tls, read_password
from agent.delivery import MAX_IN_FLIGHT, AckOrder, Backoff, Outbox, Outgoing
from contract.errors import SourceUnavailable

log = logging.getLogger("edge_agent.mqtt")

CONNECT_SECONDS = 15.0
"""TCP, TLS and CONNACK together; a mobile link takes seconds, a dead broker must not hold us for ever."""

FLUSH_SECONDS = 3.0
"""What may still be delivered when we leave."""

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0

LONGEST_TURN_SECONDS = LONGEST_WAIT_SECONDS + CONNECT_SECONDS
"""One round of the connection's loop takes no longer, whatever the broker does."""

MAX_PACKET_BYTES = 16 << 20
"""Announced to MQTT 5 brokers, which then keep larger packets to themselves. Requests over 1 MiB get a 413."""

MAX_UNACKNOWLEDGED = 100
"""Receive Maximum: messages that the broker may send before we acknowledged; they become one group commit."""

UNSENT_BYTES = 128 << 10
"""The kernel takes no more than this before the socket counts as backed up; then frames are merged."""


class Will(Struct, frozen=True):
    """What the broker publishes (QoS 1, retained) when we vanish."""

    topic: str
    payload: bytes


class Received(Struct, frozen=True):
    """A message for us. ``receipt`` goes to :meth:`Connection.acknowledge`; ``expiry_seconds`` is what was left."""

    topic: str
    payload: bytes
    retained: bool
    receipt: tuple[object, int]
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_seconds: int | None = None


class _Paho(Client):
    """paho on a socket that is connected already: its own connect would block the event loop."""

    ready_socket: socket.socket

    def _create_socket(self) -> Any:
        return self.ready_socket


class _Link:
    """One connection: its paho client, what it received, and whether it is over."""

    def __init__(self, client: _Paho, sock: socket.socket) -> None:
        self.client = client
        self.sock = sock
        self.ack_order = AckOrder()
        self.arrived: list[MQTTMessage] = []
        self.delivered: list[tuple[int, bool, str]] = []
        self.connack: asyncio.Future[tuple[bool, Any, Any]] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.writing = False
        self.up = False
        self.subscribed = False

    def end(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)


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
        self._on_writable = on_writable
        self._outbox = Outbox()
        self._numbers = itertools.count(1)
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, uniform)
        self._link: _Link | None = None
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
        """Send at QoS 0 if connected; else it is gone."""
        link = self._link
        if link is not None:
            link.client.publish(topic, payload, 0, False, self._publish_properties(correlation))
            self._watch_writes(link)

    def acknowledge(self, received: Received) -> None:
        """Tell the broker that ``received`` is ours now; without effect if that connection is gone."""
        owner, packet_id = received.receipt
        link = self._link
        if link is None or owner is not link or packet_id == 0:
            return
        for ready in link.ack_order.settle(packet_id):
            link.client.ack(ready, 1)
        self._watch_writes(link)

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
        self._watch_writes(link)

    async def run(self) -> None:
        """Connect, serve, reconnect; until cancelled."""
        said = ""
        while True:
            self.turns += 1
            try:
                link = await self._connect()
            except (SourceUnavailable, OSError) as error:
                self.problem = why = str(error)
            else:
                self._backoff.reset()
                self.problem = said = ""
                why = await self._serve(link)
            if why != said:
                log.warning("no connection to the broker %s: %s", self._settings.address, why)
                said = why
            await asyncio.sleep(self._backoff.next())

    async def _serve(self, link: _Link) -> str:
        try:
            while not link.lost.done():
                self.turns += 1
                await asyncio.wait(
                    [link.lost], timeout=min(LONGEST_WAIT_SECONDS, max(1.0, self._settings.keepalive / 4))
                )
                if not link.lost.done():
                    self._guard(link, link.client.loop_misc)
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
        self._guard(link, link.client.disconnect)
        self._drop(link)

    async def _connect(self) -> _Link:
        """Connect and subscribe.

        Raises:
            SourceUnavailable, OSError: the broker cannot be reached or refuses us.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sock = await _open_socket(self._settings)
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

    async def _await_connack(self, link: _Link) -> tuple[bool, Any, Any]:
        waited: list[asyncio.Future[Any]] = [link.connack, link.lost]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if link.connack.done():
            return link.connack.result()
        raise SourceUnavailable(f"it closed the connection: {link.lost.result()}")

    def _open_link(self, sock: socket.socket) -> _Link:
        client = self._make_client()
        client.ready_socket = sock
        link = _Link(client, sock)
        client.on_connect = lambda _c, _u, flags, reason, properties: (
            None if link.connack.done() else link.connack.set_result((flags.session_present, reason, properties))
        )
        client.on_disconnect = lambda _c, _u, _f, reason, _p: link.end(str(reason))
        client.on_message = lambda _c, _u, message: link.arrived.append(message)
        client.on_publish = lambda _c, _u, mid, reason, _p: link.delivered.append((mid, reason.is_failure, str(reason)))
        client.on_subscribe = lambda _c, _u, _mid, reasons, _p: self._on_subscribed(link, reasons)
        client.on_socket_close = lambda _c, _u, closing: _forget(closing)
        asyncio.get_running_loop().add_reader(sock, self._readable, link)
        self._guard(link, client.reconnect)
        self._watch_writes(link)
        return link

    def _make_client(self) -> _Paho:
        settings = self._settings
        five = settings.protocol == "5"
        client = _Paho(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            clean_session=None if five else self._clean,
            protocol=MQTTv5 if five else MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        # Our outbox keeps the window; paho must not hold anything back itself.
        client.max_inflight_messages = 0
        if settings.username is not None:
            client.username_pw_set(settings.username, read_password(settings))
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        properties = None
        if five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0 if self._clean else settings.session_expiry_seconds
            properties.ReceiveMaximum = MAX_UNACKNOWLEDGED
            properties.MaximumPacketSize = MAX_PACKET_BYTES
        client.connect_async(
            settings.host, settings.port, settings.keepalive, clean_start=self._clean, properties=properties
        )
        return client

    def _subscribe(self, link: _Link) -> None:
        # noLocal and the like do not apply to us; QoS 1 is what requests need.
        if self._settings.protocol == "5":
            link.client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscriptions])
        else:
            link.client.subscribe([(topic, 1) for topic in self._subscriptions])
        self._watch_writes(link)

    def _on_subscribed(self, link: _Link, reasons: list[Any]) -> None:
        link.subscribed = True
        for topic in self._subscriptions:
            self.refused.pop(topic, None)
        for topic, reason in zip(self._subscriptions, reasons, strict=False):
            if reason.is_failure:
                self.refused[topic] = str(reason)
                log.error("the broker refuses the subscription to %s: %s", topic, reason)

    def _publish_properties(self, correlation: bytes | None) -> Properties | None:
        if correlation is None or self._settings.protocol != "5":
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = correlation
        return properties

    def _pump(self) -> None:
        link = self._link
        if link is None:
            return
        while (message := self._outbox.take()) is not None:
            info = link.client.publish(
                message.topic, message.payload, 1, message.retain, self._publish_properties(message.correlation)
            )
            self._outbox.sent(message, info.mid)
        self._watch_writes(link)

    def _guard(self, link: _Link, action: Callable[[], object]) -> None:
        """Run paho; whatever a broker's bytes make it raise ends this connection and nothing else."""
        try:
            action()
        except Exception as error:
            log.debug("the connection broke in %r", action, exc_info=True)
            link.end(f"it sent something that cannot be read ({type(error).__name__})")

    def _readable(self, link: _Link) -> None:
        self._guard(link, link.client.loop_read)
        # TLS may hold decrypted packets that the socket no longer announces.
        while not link.lost.done() and isinstance(link.sock, ssl.SSLSocket) and link.sock.pending():
            self._guard(link, link.client.loop_read)
        self._watch_writes(link)
        if link.up:
            self._dispatch(link)

    def _writable(self, link: _Link) -> None:
        self._guard(link, link.client.loop_write)
        self._watch_writes(link)
        if link.up and not link.writing:
            self._on_writable()

    def _watch_writes(self, link: _Link) -> None:
        """Ask to be called when the socket takes more, exactly while something waits."""
        if link.lost.done() or link.sock.fileno() < 0:
            return
        wants = link.client.want_write()
        if wants and not link.writing:
            asyncio.get_running_loop().add_writer(link.sock, self._writable, link)
        elif link.writing and not wants:
            asyncio.get_running_loop().remove_writer(link.sock)
        link.writing = wants

    def _dispatch(self, link: _Link) -> None:
        delivered, link.delivered = link.delivered, []
        for packet_id, failed, reason in delivered:
            message = self._outbox.acknowledged(packet_id)
            if message is None:
                continue
            if failed:
                self.refused[message.topic] = reason
                log.error("the broker refuses what we publish to %s: %s", message.topic, reason)
            self._on_delivered(message.number)
        if delivered:
            self._pump()
            if not len(self._outbox):
                self._idle.set()
        arrived, link.arrived = link.arrived, []
        for message_in in arrived:
            received = _received(link, message_in)
            if received.receipt[1]:
                link.ack_order.arrived(received.receipt[1])
            self._on_message(received)

    def _drop(self, link: _Link) -> None:
        link.end("closed")
        # paho would report the socket again when it is collected, perhaps after the loop has ended.
        link.client.on_socket_close = None
        if link.sock.fileno() >= 0:
            _forget(link.sock)
            link.sock.close()
        if self._link is link:
            self._link = None
            self._outbox.connection_lost()
            self._on_down(link.lost.result())


def _forget(sock: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.remove_reader(sock)
    loop.remove_writer(sock)


def _received(link: _Link, message: MQTTMessage) -> Received:
    try:
        topic = message.topic
    except UnicodeDecodeError:
        topic = ""
    properties = message.properties
    return Received(
        topic=topic,
        payload=bytes(message.payload),
        retained=message.retain,
        receipt=(link, message.mid if message.qos else 0),
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        expiry_seconds=getattr(properties, "MessageExpiryInterval", None),
    )


async def _open_socket(settings: BrokerSettings) -> socket.socket:
    """A connected, non-blocking socket, TLS handshake included.

    Raises:
        SourceUnavailable: with the reason of the last address tried.
    """
    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceUnavailable(f"the name {settings.host!r} cannot be resolved: {error.strerror}") from error
    failure: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            # Without it small frames wait for acknowledgements: 40 ms stalls.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            await loop.sock_connect(sock, address)
            return await _handshake(sock, settings) if settings.tls is not None else sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    assert failure is not None
    raise SourceUnavailable(_explain(failure)) from failure


def _explain(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed: {error.reason or error}"
    return error.strerror or str(error) or type(error).__name__


async def _handshake(sock: socket.socket, settings: BrokerSettings) -> ssl.SSLSocket:
    loop = asyncio.get_running_loop()
    wrapped = open_tls(settings).wrap_socket(sock, server_hostname=settings.host, do_handshake_on_connect=False)
    try:
        while True:
            ready = asyncio.Event()
            try:
                wrapped.do_handshake()
                return wrapped
            except ssl.SSLWantReadError:
                loop.add_reader(wrapped, ready.set)
            except ssl.SSLWantWriteError:
                loop.add_writer(wrapped, ready.set)
            try:
                await ready.wait()
            finally:
                _forget(wrapped)
    except BaseException:
        wrapped.close()
        raise
