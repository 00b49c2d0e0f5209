"""The only way to a broker: a thin skin over paho, in our errors and with bounds on every wait."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct
from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from contract.errors import SourceUnavailable, UsageError
from contract.mqtt.protocol_detection import find_out
from edge_bundle.broker import BrokerAddress, endpoint_name

CONNECT_SECONDS = 15.0
PUBLISH_SECONDS = 15.0
RETRY_SECONDS = 30
"""Longest pause before the next attempt at a broker that is away; the first is a second, and each is twice the last."""

RETRY_ELSEWHERE_SECONDS = 2
"""The same where there are other nodes: those that are left agree within seconds, and the next one is tried."""

ACKNOWLEDGE_SECONDS = 6.0
"""Until a message is published once more, where there are several nodes: one that comes while these elect is sometimes
never acknowledged.
"""

ANSWER_ELSEWHERE_SECONDS = 10.0
"""Until a node that was connected to again, and says nothing, is left for the next one, and twice as long at each that
follows: NATS was seen to be silent for half a minute after another node's death.
"""

SUBSCRIBE_AGAIN_SECONDS = 15.0
"""After a reconnect, until what was not granted is subscribed to again: nodes of NATS that have just lost another one
refuse some filters of many, and would be silent about these for as long as the connection lasts.
"""

FLUSH_SECONDS = 2.0
"""How long closing waits until the broker has what was sent: whoever leaves tells devices to stop."""

Protocol = Literal["5", "3.1.1"]
UNSUPPORTED = "Unsupported protocol version"
"""As paho writes what a broker says that does not know MQTT 5."""

MAX_WAITED_FOR = 100
"""Of the messages that were sent without waiting; closing looks after the last ones."""

MAX_WAITING = 10_000
"""Messages that the caller has not looked at; beyond, the oldest are dropped (last frames repeat everything)."""


class Message(Struct, frozen=True):
    topic: str
    payload: bytes
    retained: bool


class BrokerSession:
    """A connection that comes back by itself, to the next node where one is gone; ``reconnects`` counts how often.

    Messages wait for :meth:`messages`, unless ``on_message`` takes them; it and ``on_reconnect`` are called in a thread
    of the session and must not block. ``protocol`` is the version of MQTT that is spoken.

    Raises (constructor): SourceUnavailable when the broker cannot be reached or refuses us; UsageError for TLS files.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        on_message: Callable[[Message], object] | None = None,
        on_reconnect: Callable[[], object] = lambda: None,
    ) -> None:
        self.address = address
        self.protocol = "5"
        self.reconnects = -1
        self._client_id = client_id
        self._listener = on_message
        self._on_reconnect = on_reconnect
        self._messages: queue.Queue[Message] = queue.Queue(MAX_WAITING)
        self._filters: list[str] = []
        self._granted: dict[int, threading.Event] = {}
        self._restoring: dict[int, list[str]] = {}
        self._subscribing = threading.Lock()
        self._unacknowledged: deque[MQTTMessageInfo] = deque(maxlen=MAX_WAITED_FOR)
        self._answered = threading.Event()
        self._accepted = False
        self._closed = False
        self._refused = ""
        self._at = 0
        self._patience = ANSWER_ELSEWHERE_SECONDS
        self._tls = _tls(address) if address.tls else None
        self._client = self._make_client("5")
        self._connect()

    def _make_client(self, protocol: Protocol) -> Client:
        address = self.address
        client = Client(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            protocol=MQTTv5 if protocol == "5" else MQTTv311,
            transport="websockets" if address.websockets else "tcp",
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_connect_fail = lambda failed, _data: self._turn(failed)
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_socket_open = self._on_socket_open
        client.reconnect_delay_set(1, RETRY_SECONDS if len(address.endpoints) == 1 else RETRY_ELSEWHERE_SECONDS)
        if address.username:
            client.username_pw_set(address.username, address.password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if address.websockets:
            client.ws_set_options(path=address.path)
        return client

    def _connect(self) -> None:
        reasons = []
        for number, endpoint in enumerate(self.address.endpoints):
            self._at = number
            why = self._try(*endpoint)
            if not why:
                return
            reasons.append(f"the broker {endpoint_name(*endpoint)} {why}")
        raise SourceUnavailable("; ".join(reasons))

    def _try(self, host: str, port: int) -> str:
        """Connect; why not, if not."""
        wanted = self.address.protocol
        protocols: tuple[Protocol, ...] = ("5", "3.1.1") if wanted == "auto" else (wanted,)
        why = ""
        for self.protocol in protocols:
            self._client = client = self._make_client(self.protocol)
            self._answered.clear()
            try:
                client.connect(host, port, keepalive=30)
            except ssl.SSLCertVerificationError as error:
                return f"shows a certificate that is not accepted: {error.verify_message}"
            except (OSError, ValueError) as error:
                why = str(getattr(error, "strerror", None) or error)
                spoken = "" if isinstance(error, ConnectionRefusedError | socket.gaierror) else self._spoken(host, port)
                return f"cannot be reached: {spoken or why}; name another with --broker"
            client.loop_start()
            answered = self._answered.wait(CONNECT_SECONDS)
            if self._accepted:
                return ""
            self._end()
            if self._refused and not (self._refused == UNSUPPORTED and wanted == "auto"):
                return f"refuses us: {self._refused}"
            why = f"refuses us: {self._refused}" if self._refused else "does not answer"
            if not answered:
                break
            # It closed the connection, or said that it knows no such version: the next one.
        spoken = self._spoken(host, port)
        return f"cannot be used: {spoken}" if spoken else why

    def _spoken(self, host: str, port: int) -> str:
        """What speaks there instead, and how to write that; empty if it is what was expected, or unknown."""
        address = self.address
        spoken = find_out(host, port, address.path)
        right = spoken.tongue == ("websockets" if address.websockets else "mqtt") and spoken.tls == address.tls
        if right or not spoken.name:
            return ""
        scheme = {"mqtt": "mqtt", "websockets": "ws", "": "mqtt"}.get(spoken.tongue)
        advice = "" if scheme is None else f": write {scheme}{'s' if spoken.tls else ''}://{endpoint_name(host, port)}"
        return f"that port speaks {spoken.name}{advice}"

    def _turn(self, client: Client) -> None:
        """Let the next attempt go to the next node."""
        endpoints = self.address.endpoints
        if self._accepted and not self._closed and len(endpoints) > 1:
            self._at = (self._at + 1) % len(endpoints)
            client.connect_async(*endpoints[self._at], keepalive=30)

    def _on_socket_open(self, client: Client, _data: Any, connection: Any) -> None:
        _send_at_once(connection)
        if self._accepted and len(self.address.endpoints) > 1:
            impatient = threading.Timer(self._patience, _leave_silent, (client, connection))
            impatient.daemon = True
            impatient.start()
            # Busy nodes take longer than idle ones, and none of them would ever be waited for.
            self._patience = 2 * self._patience

    def _on_disconnect(self, client: Client, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        if not self._accepted:
            # Before it has answered: it will not.
            self._answered.set()
        for waiting in list(self._granted.values()):
            waiting.set()
        self._turn(client)

    def __enter__(self) -> BrokerSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return bool(self._client.is_connected())

    def close(self) -> None:
        """End the connection, once the broker has what :meth:`send` sent."""
        self._closed = True
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._unacknowledged and self.connected and (left := deadline - time.monotonic()) > 0:
            # One that the queue did not take has nothing to wait for.
            with contextlib.suppress(RuntimeError, ValueError):
                self._unacknowledged[0].wait_for_publish(left)
            self._unacknowledged.popleft()
        self._end()

    def _end(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _subscribe(self, client: Client, filters: Sequence[str]) -> int | None:
        if self.protocol == "5":
            return client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in filters])[1]
        return client.subscribe([(topic, 1) for topic in filters])[1]

    def _restore(self, client: Client, filters: list[str]) -> None:
        """Subscribe to ``filters``, which were granted before this connection, until they are granted again."""
        mid = self._subscribe(client, filters)
        if mid is None:
            return
        self._restoring[mid] = filters
        timer = threading.Timer(SUBSCRIBE_AGAIN_SECONDS, self._restore_the_rest, (client, mid))
        timer.daemon = True
        timer.start()

    def _restore_the_rest(self, client: Client, mid: int) -> None:
        """What the broker did not grant in the message ``mid``, or did not answer."""
        missing = self._restoring.pop(mid, None)
        if missing and client.is_connected() and not self._closed:
            self._restore(client, missing)

    def subscribe(self, *filters: str) -> None:
        """Receive what matches; again by itself after a reconnect.

        Raises:
            SourceUnavailable: the broker refuses it or does not answer.
        """
        with self._subscribing:
            self._filters += [each for each in filters if each not in self._filters]
            done = threading.Event()
            mid = self._subscribe(self._client, filters)
            if mid is None:
                raise SourceUnavailable(f"the broker {self.address.name} is away; the subscription follows")
            self._granted[mid] = done
            answered = done.wait(CONNECT_SECONDS)
            if mid in self._granted:
                del self._granted[mid]
                text = "is away; the subscription follows" if answered else "does not answer a subscription"
                raise SourceUnavailable(f"the broker {self.address.name} {text}")
            if self._refused:
                raise SourceUnavailable(f"the broker refuses the subscription to {filters[0]}: {self._refused}")

    def subscribe_again(self) -> None:
        """Have everything that is retained sent again, of all that is subscribed to.

        Raises:
            SourceUnavailable: the broker refuses it or does not answer.
        """
        self.subscribe(*self._filters)

    def send(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1 without waiting; while the broker is away it waits in memory. Any thread may call it."""
        self._unacknowledged.append(self._client.publish(topic, payload, qos=1))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1 and wait until the broker has it, once at least.

        Raises:
            SourceUnavailable: it does not take it in time.
        """
        deadline = time.monotonic() + PUBLISH_SECONDS
        patience = PUBLISH_SECONDS if len(self.address.endpoints) == 1 else ACKNOWLEDGE_SECONDS
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        while (left := deadline - time.monotonic()) > 0:
            try:
                info.wait_for_publish(min(left, patience))
            except (RuntimeError, ValueError) as error:
                raise SourceUnavailable(f"the broker {self.address.name} is gone: {error}") from error
            if info.is_published():
                return
            if self.connected and time.monotonic() < deadline:
                info = self._client.publish(topic, payload, qos=1, retain=retain)
        raise SourceUnavailable(f"the broker {self.address.name} did not take the message in time")

    def next_message(self, seconds: float) -> Message | None:
        """The next message, or None if none came for ``seconds``."""
        return next(self.messages(seconds), None)

    def messages(self, seconds: float) -> Iterator[Message]:
        """Messages as they come, for at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                # Short waits, so that Ctrl-C is heard.
                yield self._messages.get(timeout=min(left, 0.5))
            except queue.Empty:
                continue

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._refused = str(reason) if reason.is_failure else ""
        if not reason.is_failure:
            self._accepted = True
            self._patience = ANSWER_ELSEWHERE_SECONDS
            self.reconnects += 1
            self._restoring.clear()
            if self._filters and self.reconnects:
                self._restore(client, list(self._filters))
                self._on_reconnect()
        self._answered.set()

    def _on_subscribe(self, _client: Client, _data: Any, mid: int, reasons: list[Any], _properties: Any) -> None:
        if (filters := self._restoring.pop(mid, None)) is not None:
            refused = [each for each, reason in zip(filters, reasons, strict=False) if reason.is_failure]
            if refused:
                self._restoring[mid] = refused
            return
        self._refused = next((str(reason) for reason in reasons if reason.is_failure), "")
        # The answer may be here before subscribe() has noted its number.
        for _ in range(100):
            if (done := self._granted.pop(mid, None)) is not None:
                done.set()
                return
            time.sleep(0.001)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        received = Message(message.topic, bytes(message.payload), message.retain)
        if self._listener is not None:
            self._listener(received)
            return
        while True:
            try:
                self._messages.put_nowait(received)
                return
            except queue.Full:
                try:
                    self._messages.get_nowait()
                except queue.Empty:
                    continue


def _leave_silent(client: Client, connection: Any) -> None:
    """End ``connection``, if nobody has answered on it; the client notices, and turns to the next node."""
    if not client.is_connected():
        with contextlib.suppress(OSError):
            getattr(connection, "_socket", connection).shutdown(socket.SHUT_RDWR)


def _send_at_once(connection: Any) -> None:
    """Else the kernel holds a request back, up to 40 ms, until the broker has acknowledged our last acknowledgement."""
    # Of websockets, the one below.
    below = getattr(connection, "_socket", connection)
    with contextlib.suppress(OSError):
        below.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _tls(address: BrokerAddress) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(address.ca) if address.ca else None)
        if address.cert is not None:
            context.load_cert_chain(address.cert, address.key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"a certificate file cannot be used: {error.strerror or error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
