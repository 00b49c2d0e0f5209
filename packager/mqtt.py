"""The packager's only way to a broker: a thin blocking skin over paho, in our errors and with bounds on every wait."""

from __future__ import annotations

import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from contract.errors import SourceUnavailable, UsageError
from packager.client.broker import BrokerAddress

CONNECT_SECONDS = 15.0
PUBLISH_SECONDS = 15.0
MAX_WAITING = 10_000
"""Messages that the caller has not looked at; beyond, the oldest are dropped (last frames repeat everything)."""


class Message(Struct, frozen=True):
    topic: str
    payload: bytes
    retained: bool


class BrokerSession:
    """A connection that comes back by itself; ``reconnects`` counts how often it did.

    Messages wait for :meth:`messages`, unless ``on_message`` takes them; it and ``on_reconnect`` are called in a thread
    of the session and must not block.

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
        self._listener = on_message
        self._on_reconnect = on_reconnect
        self.reconnects = -1
        self._messages: queue.Queue[Message] = queue.Queue(MAX_WAITING)
        self._filters: list[str] = []
        self._granted: dict[int, threading.Event] = {}
        self._answered = threading.Event()
        self._refused = ""
        self._client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.reconnect_delay_set(1, 30)
        if address.username:
            self._client.username_pw_set(address.username, address.password)
        if address.tls:
            self._client.tls_set_context(_tls(address))
        self._connect()

    def _connect(self) -> None:
        try:
            self._client.connect(self.address.host, self.address.port, keepalive=30)
        except ssl.SSLCertVerificationError as error:
            raise SourceUnavailable(
                f"the broker {self.address.name} shows a certificate that is not accepted: {error.verify_message}"
            ) from error
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise SourceUnavailable(
                f"the broker {self.address.name} cannot be reached: {why}; name another with --broker"
            ) from error
        self._client.loop_start()
        if not self._answered.wait(CONNECT_SECONDS):
            self.close()
            raise SourceUnavailable(f"the broker {self.address.name} does not answer")
        if self._refused:
            self.close()
            raise SourceUnavailable(f"the broker {self.address.name} refuses us: {self._refused}")

    def __enter__(self) -> BrokerSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return bool(self._client.is_connected())

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def subscribe(self, *filters: str) -> None:
        """Receive what matches; again by itself after a reconnect.

        Raises:
            SourceUnavailable: the broker refuses it or does not answer.
        """
        self._filters += filters
        done = threading.Event()
        _, mid = self._client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in filters])
        if mid is not None:
            self._granted[mid] = done
        if not done.wait(CONNECT_SECONDS):
            raise SourceUnavailable(f"the broker {self.address.name} does not answer a subscription")
        if self._refused:
            raise SourceUnavailable(f"the broker refuses the subscription to {filters[0]}: {self._refused}")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1 and wait until the broker has it.

        Raises:
            SourceUnavailable: it does not take it in time.
        """
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        try:
            info.wait_for_publish(PUBLISH_SECONDS)
        except (RuntimeError, ValueError) as error:
            raise SourceUnavailable(f"the broker {self.address.name} is gone: {error}") from error
        if not info.is_published():
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
            self.reconnects += 1
            if self._filters and self.reconnects:
                client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._filters])
                self._on_reconnect()
        self._answered.set()

    def _on_subscribe(self, _client: Client, _data: Any, mid: int, reasons: list[Any], _properties: Any) -> None:
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


def _tls(address: BrokerAddress) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(address.ca) if address.ca else None)
        if address.cert is not None:
            context.load_cert_chain(address.cert, address.key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"a certificate file cannot be used: {error.strerror or error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
