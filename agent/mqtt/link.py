"""One connection to a broker: a paho client of its own on a socket that asyncio watches."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from paho.mqtt.client import Client, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.mqtt.loss import Loss
from agent.mqtt.outbox import AckOrder, Undeliverable, publish_size
from agent.mqtt.publish_reader import read_publish
from agent.mqtt.settings import BrokerSettings, Protocol, read_password
from agent.mqtt.sockets import Stream, forget
from agent.mqtt.unconfirmed import Unconfirmed
from agent.mqtt.websocket import WebSocket

log = logging.getLogger("edge_agent.mqtt")

MAX_PACKET_BYTES = 16 << 20
"""Announced to MQTT 5 brokers, which then keep larger packets to themselves. Requests over 1 MiB get a 413."""

PACKET_OVERHEAD = 128
"""Of a PUBLISH: header, lengths, packet id, and what properties take besides their data."""

MAX_BACKED_UP = 256
"""QoS 0 messages that may wait for a socket that takes no more; what comes then is lost, as QoS 0 allows. Pieces of
answers do not get here, they are merged before; it holds for what is said at any time, like refused control messages.
"""

MAX_UNACKNOWLEDGED = 100
"""Receive Maximum: messages that the broker may send before we acknowledged; they become one group commit."""


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


PACKET_TOO_LARGE = 0x95
_UNSPECIFIED = 0x80
_PUBACK_REASONS = frozenset({0x00, 0x10, _UNSPECIFIED, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})


class _Paho(Client):
    """paho on a socket that is connected already: its own connect would block the event loop."""

    ready_socket: Stream
    too_large: set[int]

    def _create_socket(self) -> Any:
        return self.ready_socket

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            return super()._handle_publish()
        except Exception:
            incoming = self._in_packet
            message = read_publish(incoming["command"], bytes(incoming["packet"]), five=self._protocol == MQTTv5)
            log.warning("a message on %r has properties that cannot be read", bytes(message._topic)[:100])
            self._handle_on_message(message)
            return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Any) -> Any:
        # mosquitto says PACKET_TOO_LARGE, which the standard does not have here; paho would end the connection.
        packet = self._in_packet["packet"]
        if self.protocol == MQTTv5 and len(packet) > 2 and packet[2] not in _PUBACK_REASONS:
            if packet[2] == PACKET_TOO_LARGE:
                self.too_large.add(int.from_bytes(packet[:2], "big"))
            self._in_packet["packet"] = bytearray(packet[:2]) + bytes([_UNSPECIFIED]) + packet[3:]
        return super()._handle_pubackcomp(cmd)


class Answered(Struct, frozen=True):
    """What the broker said to a QoS 1 message of ours; ``too_large``: it does not take so many bytes."""

    packet_id: int
    failed: bool
    reason: str
    too_large: bool


class Link:
    """``on_read`` is called after data was read, ``on_writable`` when the socket takes data again."""

    def __init__(
        self,
        client: _Paho,
        sock: Stream,
        protocol: Protocol,
        *,
        on_read: Callable[[Link], None],
        on_writable: Callable[[Link], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.client = client
        self.sock = sock
        self.protocol = protocol
        self.to_ask: list[str] = []
        self.asked: dict[int, list[str]] = {}
        self.on_subscribed: Callable[[], None] | None = None
        self.ack_order = AckOrder()
        self.arrived: list[MQTTMessage] = []
        self.delivered: list[Answered] = []
        self.connack: asyncio.Future[tuple[bool, Any, Any]] = loop.create_future()
        self.lost: asyncio.Future[Loss] = loop.create_future()
        self.once = Unconfirmed()
        self._holding = False
        self.writing = False
        self._backed_up = 0
        self.up = False
        self.max_packet: int | None = None
        self.shares = True
        self.subscribed = False
        self._on_read = on_read
        self._on_writable = on_writable
        client.ready_socket = sock
        client.too_large = set()
        client.on_connect = lambda _c, _u, flags, reason, properties: (
            None if self.connack.done() else self.connack.set_result((flags.session_present, reason, properties))
        )
        client.on_disconnect = lambda _c, _u, flags, reason, _p: self.end(
            _loss(reason, from_broker=flags.is_disconnect_packet_from_server)
        )
        client.on_message = lambda _c, _u, message: self.arrived.append(message)
        client.on_publish = self._acknowledged
        client.on_socket_close = lambda _c, _u, closing: forget(closing)  # type: ignore[arg-type] # paho's own socket
        loop.add_reader(sock, self._readable)
        self.guard(client.reconnect)
        self.watch_writes()

    def too_large(self, topic: str, payload: bytes, correlation: bytes | None) -> Undeliverable | None:
        """Why a message is not to be sent: the broker said that it takes no packets of this size."""
        size = publish_size(topic, payload, correlation)
        if self.max_packet is None or size + PACKET_OVERHEAD <= self.max_packet:
            return None
        return Undeliverable(topic, size, self.max_packet)

    def publish_once(self, topic: str, payload: bytes, properties: Properties | None) -> None:
        """Send at QoS 0, in one segment with all else that is sent in this turn of the loop.

        A step of the engine gives every stream its token at once; sent one by one, each would wake up the broker and
        through it the client, which on a small device take the cores from the engine.
        """
        if self.writing:
            if self._backed_up >= MAX_BACKED_UP:
                return
            self._backed_up += 1
        self._hold_segment()
        # Where somebody wants to hear of it, paho spends more on saying that it was sent than on sending it.
        self.client.on_publish = None
        try:
            self.client.publish(topic, payload, 0, False, properties)
        finally:
            self.client.on_publish = self._acknowledged
        self.watch_writes()

    def _acknowledged(self, _client: object, _data: object, packet_id: int, reason: Any, _properties: object) -> None:
        too_large = packet_id in self.client.too_large
        self.client.too_large.discard(packet_id)
        self.delivered.append(
            Answered(packet_id, reason.is_failure, "Packet too large" if too_large else str(reason), too_large)
        )

    def _hold_segment(self) -> None:
        if not self._holding and self.sock.fileno() >= 0:
            self._holding = True
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            asyncio.get_running_loop().call_soon(self._send_segment)

    def _send_segment(self) -> None:
        self._holding = False
        if self.sock.fileno() >= 0:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def end(self, loss: Loss) -> None:
        """It is over; what was said first counts."""
        if not self.lost.done():
            self.lost.set_result(loss)

    def guard(self, action: Callable[[], object]) -> None:
        """Run paho; whatever a broker's bytes make it raise ends this connection and nothing else."""
        try:
            action()
        except Exception as error:
            log.debug("the connection broke in %r", action, exc_info=True)
            self.end(Loss(f"it sent something that cannot be read ({type(error).__name__})", "unreadable"))

    def watch_writes(self) -> None:
        """Ask to be called when the socket takes more, exactly while something waits."""
        if self.lost.done() or self.sock.fileno() < 0:
            return
        wants = self.client.want_write() or (isinstance(self.sock, WebSocket) and self.sock.unsent)
        if wants and not self.writing:
            asyncio.get_running_loop().add_writer(self.sock, self._writable)
        elif self.writing and not wants:
            asyncio.get_running_loop().remove_writer(self.sock)
            self._backed_up = 0
        self.writing = wants

    def close(self) -> None:
        """Close the socket."""
        self.end(Loss("closed", "ours"))
        # paho would report the socket again when it is collected, perhaps after the loop has ended.
        self.client.on_socket_close = None
        if self.sock.fileno() >= 0:
            forget(self.sock)
            self.sock.close()

    def _readable(self) -> None:
        self.guard(self.client.loop_read)
        # TLS may hold decrypted packets that the socket no longer announces.
        while not self.lost.done() and isinstance(self.sock, ssl.SSLSocket | WebSocket) and self.sock.pending():
            self.guard(self.client.loop_read)
        self.watch_writes()
        if self.up:
            self._on_read(self)

    def _writable(self) -> None:
        if isinstance(self.sock, WebSocket):
            self.guard(self.sock.flush)
        self.guard(self.client.loop_write)
        self.watch_writes()
        if self.up and not self.writing:
            self._on_writable(self)


_KEEP_ALIVE, _PROTOCOL_ERROR = 0x8D, 0x82


def _loss(reason: Any, *, from_broker: bool) -> Loss:
    """paho's reasons for an end, which for all but what a broker said are its own guesses."""
    if from_broker:
        return Loss(f"it ended the connection: {reason}", "said", reason.value)
    if reason.value == _KEEP_ALIVE:
        return Loss("nothing came from it any more", "silent")
    if reason.value == _PROTOCOL_ERROR:
        return Loss("Protocol error: it sent something that cannot be right", "unreadable")
    return Loss("it closed the connection", "closed")


def received(link: Link, message: MQTTMessage) -> Received:
    """What ``message`` is to the rest of the agent."""
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


def lacks(properties: object) -> str:
    """What a broker says it does not have although we cannot do without it; empty if there is nothing."""
    for name, words in (("MaximumQoS", "QoS 1"), ("RetainAvailable", "retained messages")):
        if getattr(properties, name, 1) == 0:
            return words
    return ""


def make_client(
    settings: BrokerSettings, client_id: str, protocol: Protocol, *, clean: bool, will: Will | None
) -> _Paho:
    """A paho client that says what we want of a broker, and leaves all else to us."""
    five = protocol == "5"
    client = _Paho(
        CallbackAPIVersion.VERSION2,
        client_id,
        clean_session=None if five else clean,
        protocol=MQTTv5 if five else MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    # Our outbox keeps the window; paho must not hold anything back itself.
    client.max_inflight_messages = 0
    if settings.username is not None:
        client.username_pw_set(settings.username, read_password(settings))
    if will is not None:
        client.will_set(will.topic, will.payload, qos=1, retain=True)
    properties = None
    if five:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0 if clean else settings.session_expiry_seconds
        properties.ReceiveMaximum = MAX_UNACKNOWLEDGED
        properties.MaximumPacketSize = MAX_PACKET_BYTES
    # Where to is decided already: see ready_socket.
    client.connect_async("broker", 1883, settings.keepalive, clean_start=clean, properties=properties)
    return client


def publish_properties(protocol: Protocol, correlation: bytes | None) -> Properties | None:
    """MQTT 5 properties of a message, if it has any."""
    return None if correlation is None or protocol != "5" else _correlation_properties(correlation)


@functools.lru_cache(64)
def _correlation_properties(correlation: bytes) -> Properties:
    """Made once for all the pieces of an answer: paho takes as long for it as for all the rest of a publish."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.CorrelationData = correlation
    return properties
