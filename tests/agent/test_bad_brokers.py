"""Brokers that refuse, drop, babble or lie about their limits, and clocks and certificates that do not fit: the device
says why, tries again, and works once the broker does.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.mqtt.settings import TlsSettings
from tests.agent.device import Device, sealed
from tests.broker import Broker, find_mosquitto
from tests.certificates import Authority, tls_broker
from tests.e2e.raw_client import RawClient

SECONDS = 120.0

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ = 1, 2, 3, 4, 8, 9, 12

GOOD = bytes([0, 0, 0])
"""CONNACK's body: no session, success, no properties."""


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    size, length = len(body), b""
    while True:
        size, digit = divmod(size, 128)
        length += bytes([digit | (0x80 if size else 0)])
        if not size:
            return bytes([kind << 4 | flags]) + length + body


def connack(*properties: bytes, reason: int = 0) -> bytes:
    found = b"".join(properties)
    return packet(CONNACK, bytes([0, reason, len(found)]) + found)


RECEIVE_MAXIMUM, MAXIMUM_QOS, RETAIN, MAXIMUM_PACKET = b"\x21", b"\x24", b"\x25", b"\x27"


class Liar:
    """A broker of a few lines that speaks real packets. Each connection gets the next of ``openings``, the last one
    for ever: bytes to answer CONNECT with, and whether to go on after that.
    """

    def __init__(self, *openings: tuple[bytes, bool], max_packet: int | None = None) -> None:
        self._openings = list(openings)
        self._max_packet = max_packet
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.connections = 0
        self.published: queue.Queue[tuple[str, int, bool]] = queue.Queue()
        self.acknowledging = threading.Event()
        self.acknowledging.set()
        self._held: list[tuple[socket.socket, bytes]] = []
        self._holding = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            opening = self._openings.pop(0) if len(self._openings) > 1 else self._openings[0]
            threading.Thread(target=self._serve, args=(connection, *opening), daemon=True).start()

    def _serve(self, connection: socket.socket, answer: bytes, go_on: bool) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                if self._read(stream)[0] != CONNECT:
                    # Whoever asks what speaks here gets no answer.
                    return
                connection.sendall(answer)
                while go_on:
                    kind, flags, body = self._read(stream)
                    if self._max_packet is not None and len(body) > self._max_packet:
                        return
                    self._answer(connection, kind, flags, body)
            except (OSError, EOFError):
                return

    def _answer(self, connection: socket.socket, kind: int, flags: int, body: bytes) -> None:
        if kind == SUBSCRIBE:
            connection.sendall(packet(SUBACK, body[:2] + b"\0" + b"\1" * body.count(b"edge/v1")))
        elif kind == PUBLISH:
            size = int.from_bytes(body[:2], "big")
            self.published.put((body[2 : 2 + size].decode(), flags >> 1 & 3, bool(flags & 1)))
            if flags & 6:
                self._acknowledge(connection, packet(PUBACK, body[2 + size : 4 + size]))
        elif kind == PINGREQ:
            connection.sendall(packet(13, b""))

    def _acknowledge(self, connection: socket.socket, puback: bytes) -> None:
        with self._holding:
            if self.acknowledging.is_set():
                connection.sendall(puback)
            else:
                self._held.append((connection, puback))

    def acknowledge_what_was_held(self) -> None:
        """From now on it acknowledges again."""
        with self._holding:
            self.acknowledging.set()
            for connection, puback in self._held:
                connection.sendall(puback)

    @staticmethod
    def _read(stream: object) -> tuple[int, int, bytes]:
        head = stream.read(1)  # type: ignore[attr-defined]
        if not head:
            raise EOFError
        size, shift = 0, 0
        while True:
            digit = stream.read(1)[0]  # type: ignore[attr-defined]
            size |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                break
        return head[0] >> 4, head[0] & 15, stream.read(size)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (connack(reason=0x86), "Bad user name or password"),
        (connack(reason=0x87), "Not authorized"),
        (connack(reason=0x97), "Quota exceeded"),
        (b"", "it closed the connection"),
        (connack()[:3], "it closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ""),
        (packet(CONNACK, b"\0\0\x05\xff\xff\xff\xff\xff"), ""),
        (b"\x20\xff\xff\xff\xff\xff", ""),
        (packet(PUBLISH, b"\0\1a\0" + b"x" * 1000), ""),
        (connack(RECEIVE_MAXIMUM + b"\0\0"), "Protocol error"),
        (connack(MAXIMUM_QOS + b"\0"), "QoS 1"),
        (connack(RETAIN + b"\0"), "retained"),
    ],
)
def test_a_broker_that_does_not_take_us_is_tried_again_until_it_does(
    connect: Callable[..., Device], said: Callable[[], str], answer: bytes, why: str
) -> None:
    liar = Liar((answer, False), (packet(CONNACK, GOOD), True))
    device = connect(liar.port)
    device.until(lambda: device.gateway.connection.subscribed)
    assert liar.connections >= 2
    assert liar.published.get(timeout=SECONDS)[0].startswith("edge/v1/d/box/")
    assert "no connection to the broker" in said()
    assert why in said()
    liar.close()


def test_a_window_of_one_message_is_kept_to(connect: Callable[..., Device]) -> None:
    liar = Liar((connack(RECEIVE_MAXIMUM + b"\0\1"), True))
    device = connect(liar.port)
    device.until(lambda: device.gateway.connection.subscribed and device.gateway.connection.undelivered == 0)
    while not liar.published.empty():
        liar.published.get()
    liar.acknowledging.clear()
    for number in range(20):
        device.call(lambda number=number: device.gateway.event("install", {"bundle": f"m@{number}.0.0"}))  # type: ignore[misc]
    # It comes after all that was sent before it, and needs no place in the window.
    device.call(lambda: device.gateway.connection.publish_once("edge/v1/d/box/after", b""))
    seen = [liar.published.get(timeout=SECONDS)]
    while seen[-1][0] != "edge/v1/d/box/after":
        seen.append(liar.published.get(timeout=SECONDS))
    assert [topic for topic, qos, _ in seen if qos == 1] == ["edge/v1/d/box/event/install"]
    liar.acknowledge_what_was_held()
    device.until(lambda: device.gateway.connection.undelivered == 0)
    assert [liar.published.get(timeout=SECONDS)[1] for _ in range(19)] == [1] * 19
    liar.close()


def test_what_the_broker_does_not_take_is_given_up_and_nothing_else(
    connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    """Sent all the same it would break every connection."""
    liar = Liar((connack(MAXIMUM_PACKET + (4000).to_bytes(4, "big")), True), max_packet=4000)
    device = connect(liar.port)
    device.until(lambda: device.gateway.connection.subscribed)
    device.call(lambda: device.gateway.event("install", {"bundle": "x" * 5000}))
    device.call(lambda: device.gateway.event("swap", {"bundle": "m@1.0.0"}))
    device.call(lambda: device.gateway.telemetry(b"x" * 5000, b"{}"))
    device.until(lambda: device.gateway.connection.undelivered == 0)
    topics = [liar.published.get(timeout=SECONDS)[0]]
    while topics[-1] != "edge/v1/d/box/telemetry/llm":
        topics.append(liar.published.get(timeout=SECONDS)[0])
    assert "edge/v1/d/box/event/swap" in topics
    assert "edge/v1/d/box/event/install is given up: the broker takes 4,000 bytes at most" in said()
    assert liar.connections == 1
    liar.close()


needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@needs_mosquitto
@pytest.mark.broker
@pytest.mark.parametrize(
    ("name", "why"),
    [("expired", "certificate has expired"), ("future", "certificate is not yet valid"), ("elsewhere", "127.0.0.1")],
)
def test_a_certificate_that_does_not_hold_is_named_and_a_new_one_is_taken(
    tmp_path: Path, authority: Authority, connect: Callable[..., Device], said: Callable[[], str], name: str, why: str
) -> None:
    bad = tls_broker(tmp_path / "bad", authority, name)
    device = connect(bad.port, tls=TlsSettings(ca=authority.certificate))
    device.until(lambda: bool(device.gateway.connection.problem))
    assert why in device.gateway.connection.problem
    assert not device.gateway.connection.connected
    bad.stop()
    # The same address with a certificate that holds: nobody touches the device.
    (authority.directory / f"{name}.pem").write_bytes((authority.directory / "good.pem").read_bytes())
    (authority.directory / f"{name}.key").write_bytes((authority.directory / "good.key").read_bytes())
    listens, bad.port = bad.port, int((tmp_path / "bad/mosquitto.conf").read_text().split("listener ")[1].split()[0])
    bad.start()
    bad.port = listens
    device.until(lambda: device.gateway.connection.subscribed)
    assert "Traceback" not in said()
    bad.stop()


@needs_mosquitto
@pytest.mark.broker
def test_our_own_certificate_that_expired_is_refused_by_the_broker_and_said(
    tmp_path: Path, authority: Authority, connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    authority.sign("client-old", -30, -1)
    authority.sign("client-new", -1, 30)
    files = authority.directory
    broker = tls_broker(
        tmp_path / "mtls", authority, "good", "require_certificate true", "use_identity_as_username true"
    )
    old = connect(
        broker.port, tls=TlsSettings(authority.certificate, files / "client-old.pem", files / "client-old.key")
    )
    old.until(lambda: bool(old.gateway.connection.problem))
    assert not old.gateway.connection.connected
    assert "no connection to the broker" in said()
    new = connect(
        broker.port, tls=TlsSettings(authority.certificate, files / "client-new.pem", files / "client-new.key")
    )
    new.until(lambda: new.gateway.connection.subscribed)
    broker.stop()


@pytest.fixture
def small(tmp_path: Path, connect: Callable[..., Device]) -> Iterator[tuple[Device, RawClient]]:
    """A device and a client at a broker that takes 2,000 bytes in a message."""
    broker = Broker(tmp_path / "small", settings="max_packet_size 2000\n")
    broker.start()
    device = connect(broker.port)
    device.until(lambda: device.gateway.connection.subscribed)
    client = RawClient(broker.port, "me", "box")
    yield device, client
    client.close()
    broker.stop()


@needs_mosquitto
@pytest.mark.broker
def test_correlation_data_that_fill_a_packet_do_not_keep_the_device_away(
    small: tuple[Device, RawClient],
) -> None:
    """An error that repeats them would be larger than the request was, and break every connection."""
    device, client = small
    filled = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    filled.CorrelationData = b"x" * 1900
    client._client.publish("edge/v1/d/box/generate/me", b"{}", 1, properties=filled).wait_for_publish(SECONDS)
    reply = "edge/v1/c/me/r/box/-"
    device.until(lambda: reply in device.gateway.connection.refused)
    client.ask("q", "count 1")
    assert client.wait_answer("q", SECONDS).lasts[0]["error"]["type"] == "no_model"
    assert device.call(lambda: device.gateway.connection.connected)


@needs_mosquitto
@pytest.mark.broker
def test_an_answer_that_no_message_holds_is_told_and_keeps_nothing_up(small: tuple[Device, RawClient]) -> None:
    device, client = small
    device.run(device.serving.swap(sealed(), "drain"))
    client.ask("long", "count 700", stream=False)
    error = client.wait_answer("long", SECONDS).lasts[0]["error"]
    assert (error["code"], error["type"]) == (500, "answer_too_large")
    assert "2,000 bytes" in error["message"]
    client.ask("short", "count 3", stream=False)
    assert client.wait_answer("short", SECONDS).text == "0 1 2 "
    client.ask("long", "count 700", stream=False)
    again = client.wait_answer("long", SECONDS).lasts[0]["error"]
    assert again["type"] == "answer_too_large", "whenever it asks"


def test_a_password_file_that_is_gone_for_a_while_does_not_end_the_agent(
    tmp_path: Path, connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    liar = Liar((packet(CONNACK, GOOD), True))
    device = connect(liar.port, username="box", password_file=tmp_path / "secret")
    device.until(lambda: "password_file" in device.gateway.connection.problem)
    (tmp_path / "secret").write_text("hunter2")
    device.until(lambda: device.gateway.connection.subscribed)
    assert "hunter2" not in said()
    liar.close()
