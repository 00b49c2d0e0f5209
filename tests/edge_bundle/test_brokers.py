"""Brokers of every kind from the workstation: without MQTT 5, behind websockets, of several nodes, and none at all."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from contract.errors import SourceUnavailable, UsageError
from edge_bundle.broker import BrokerAddress, parse_broker
from edge_bundle.broker_session import BrokerSession
from edge_bundle.client import Client
from tests.agent.device import Device, sealed
from tests.broker import Broker, find_mosquitto, free_port
from tests.certificates import Authority, tls_broker
from tests.nats import Nats

SUBSCRIBE, PUBACK = 8, 4
"""Types of packets."""

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Nats]:
    server = Nats(tmp_path / "nats")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def device(nats: Nats, tmp_path: Path) -> Iterator[Device]:
    settings = BrokerSettings(host="127.0.0.1", port=nats.port)
    config = AgentConfig(device="box", state_dir=tmp_path, broker=settings)
    made = Device(config, tmp_path / "state.db").start(sealed())
    yield made
    made.stop()


def test_prompt_deploy_and_watch_against_a_broker_without_mqtt_5(nats: Nats, device: Device) -> None:
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "packager.cli", *arguments, "--device", "box", "--broker", nats.url]

    def packager(*arguments: str) -> str:
        return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=True).stdout

    assert packager("prompt", "count 4").strip() == "0 1 2 3"
    assert "asked" in packager("deploy", "toy@2.0.0", "--revision", "r1")
    device.until(lambda: bool(device.desired))
    assert json.loads(device.desired[0])["revision"] == "r1"
    with subprocess.Popen(command("watch", "--json", "--seconds", "120"), stdout=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        seen: set[str] = set()
        while not {"status", "health"} <= seen:
            seen.add(json.loads(watch.stdout.readline())["kind"])
        watch.send_signal(signal.SIGINT)
        assert watch.wait(120) == 130


def test_requests_are_not_held_back_by_the_kernel(nats: Nats) -> None:
    for url in (nats.url, f"ws://127.0.0.1:{nats.web_port}/mqtt"):
        with BrokerSession(parse_broker(url), "quick") as session:
            connection = session._client.socket()
            below = getattr(connection, "_socket", connection)
            assert below.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_version_that_is_demanded_is_not_replaced(nats: Nats) -> None:
    with pytest.raises(SourceUnavailable, match="Unsupported protocol version"):
        BrokerSession(BrokerAddress("127.0.0.1", nats.port, protocol="5"), "me")
    with BrokerSession(BrokerAddress("127.0.0.1", nats.port, protocol="3.1.1"), "me") as session:
        assert session.protocol == "3.1.1"


def test_websockets(nats: Nats, device: Device) -> None:
    with Client(parse_broker(f"ws://127.0.0.1:{nats.web_port}/mqtt")) as client:
        messages = [{"role": "user", "content": "count 4"}]
        assert client.complete(device="box", messages=messages).choices[0].message.content == "0 1 2 3 "


@pytest.mark.broker
@needs_mosquitto
def test_the_next_node_is_taken_at_the_start_and_when_one_is_gone(tmp_path: Path) -> None:
    first, second = Broker(tmp_path / "first"), Broker(tmp_path / "second")
    second.start()
    address = parse_broker(f"mqtt://127.0.0.1:{first.port},127.0.0.1:{second.port}")
    with BrokerSession(address, "me") as session:
        session.subscribe("a")
        first.start()
        second.stop()
        while not (session.reconnects == 1 and session.connected):
            session.next_message(0.1)
        with BrokerSession(parse_broker(first.url), "other") as other:
            other.publish("a", b"x")
            message = session.next_message(120)
        assert message is not None
        assert message.payload == b"x"
    first.stop()


@pytest.mark.broker
@needs_mosquitto
def test_a_node_that_is_there_and_says_nothing_is_left_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the nodes of NATS that are left, while they elect whom they need."""
    monkeypatch.setattr("edge_bundle.broker_session.ANSWER_ELSEWHERE_SECONDS", 0.2)
    first, last = Broker(tmp_path / "first"), Broker(tmp_path / "last")
    first.start()
    last.start()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = parse_broker(f"mqtt://127.0.0.1:{first.port},127.0.0.1:{port},127.0.0.1:{last.port}")
        with BrokerSession(address, "me") as session:
            session.subscribe("a")
            first.stop()
            while not (session.reconnects == 1 and session.connected):
                session.next_message(0.1)
            with BrokerSession(parse_broker(last.url), "other") as other:
                other.publish("a", b"x")
                message = session.next_message(120)
    last.stop()
    assert message is not None
    assert message.payload == b"x"


Look = Callable[[bytes], bytes | None]
"""Shown a packet of a client; None hands it on, anything else is answered in the broker's place."""


class Relay:
    """Between clients and a broker: ``look`` sees what clients send, and of what the broker sends one PUBACK is lost
    where ``loses`` says so.
    """

    def __init__(self, broker: Broker, look: Look = lambda packet: None, *, loses: bool = False) -> None:
        self._broker = broker
        self._look = look
        self._loses = loses
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection(("127.0.0.1", self._broker.port))
                self._open += [here, there]
                for pair, see in (((here, there), self._ask), ((there, here), self._tell)):
                    threading.Thread(target=self._hand_on, args=(*pair, see), daemon=True).start()

    def _hand_on(
        self, source: socket.socket, target: socket.socket, see: Callable[[bytes], tuple[bytes, bytes]]
    ) -> None:
        waiting = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                waiting += data
                # All packets here are short: a type, a length in one byte, and so many bytes.
                while len(waiting) >= 2 and len(waiting) >= 2 + waiting[1]:
                    packet, waiting = waiting[: 2 + waiting[1]], waiting[2 + waiting[1] :]
                    onwards, back = see(packet)
                    target.sendall(onwards)
                    source.sendall(back)
            target.shutdown(socket.SHUT_WR)

    def _ask(self, packet: bytes) -> tuple[bytes, bytes]:
        answer = self._look(packet)
        return (packet, b"") if answer is None else (b"", answer)

    def _tell(self, packet: bytes) -> tuple[bytes, bytes]:
        if packet[0] >> 4 == PUBACK and self._loses:
            self._loses = False
            return b"", b""
        return packet, b""

    def cut(self) -> None:
        """Every connection ends."""
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
        self.cut()


@pytest.mark.broker
@needs_mosquitto
def test_what_a_node_does_not_acknowledge_is_published_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a node of NATS that took it while the others elected whom they need."""
    monkeypatch.setattr("edge_bundle.broker_session.ACKNOWLEDGE_SECONDS", 0.2)
    broker = Broker(tmp_path / "broker")
    broker.start()
    relay = Relay(broker, loses=True)
    with (
        BrokerSession(parse_broker(broker.url), "other") as other,
        BrokerSession(parse_broker(f"mqtt://127.0.0.1:{relay.port},127.0.0.1:{broker.port}"), "me") as session,
    ):
        other.subscribe("a")
        session.publish("a", b"x")
        heard = [other.next_message(120), other.next_message(120)]
    relay.close()
    broker.stop()
    assert [message.payload for message in heard if message is not None] == [b"x", b"x"]


@pytest.mark.broker
@needs_mosquitto
def test_a_subscription_that_is_refused_after_a_reconnect_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by nodes of NATS that have just lost another one: whoever takes that for an answer hears nothing any more."""
    monkeypatch.setattr("edge_bundle.broker_session.SUBSCRIBE_AGAIN_SECONDS", 0.2)
    broker = Broker(tmp_path / "broker")
    broker.start()
    asked: list[bytes] = []

    def look(packet: bytes) -> bytes | None:
        if packet[0] >> 4 != SUBSCRIBE:
            return None
        asked.append(packet)
        # The second one is the first after the reconnect: a SUBACK for it that grants nothing, of MQTT 5.
        return b"\x90\x04" + packet[2:4] + b"\x00\x80" if len(asked) == 2 else None

    relay = Relay(broker, look)
    with (
        BrokerSession(parse_broker(f"mqtt://127.0.0.1:{relay.port}"), "me") as session,
        BrokerSession(parse_broker(broker.url), "other") as other,
    ):
        session.subscribe("a")
        relay.cut()
        while len(asked) < 3:
            session.next_message(0.1)
        other.publish("a", b"x", retain=True)
        message = session.next_message(120)
    relay.close()
    broker.stop()
    assert message is not None
    assert message.payload == b"x"


@pytest.mark.broker
@needs_mosquitto
def test_what_speaks_there_instead_is_named_with_the_url_to_write(
    tmp_path: Path, authority: Authority, nats: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_bundle.broker_session.CONNECT_SECONDS", 2.0)
    plain = Broker(tmp_path / "plain")
    plain.start()
    closed = tls_broker(tmp_path / "tls", authority, "good")
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    port = web.server_address[1]
    cases = [
        (f"mqtt://127.0.0.1:{closed.port}", f"speaks MQTT over TLS: write mqtts://127.0.0.1:{closed.port}"),
        (f"mqtts://127.0.0.1:{plain.port}", f"speaks MQTT: write mqtt://127.0.0.1:{plain.port}"),
        (f"ws://127.0.0.1:{plain.port}", f"speaks MQTT: write mqtt://127.0.0.1:{plain.port}"),
        (f"mqtt://127.0.0.1:{nats.web_port}", f"over websockets: write ws://127.0.0.1:{nats.web_port}"),
        (f"mqtt://127.0.0.1:{port}", "speaks HTTP (a web server)"),
        (f"mqtt://127.0.0.1:{free_port()}", "Connection refused"),
    ]
    for url, words in cases:
        with pytest.raises(SourceUnavailable) as caught:
            BrokerSession(parse_broker(url), "me")
        assert words in caught.value.message
    web.shutdown()
    web.server_close()
    plain.stop()
    closed.stop()


def test_urls_of_brokers() -> None:
    assert parse_broker("a").endpoints == (("a", 1883),)
    assert parse_broker("mqtts://a,b:1,[::1]:2").endpoints == (("a", 8883), ("b", 1), ("::1", 2))
    assert parse_broker("mqtts://a,mqtts://b").endpoints == (("a", 8883), ("b", 8883))
    two = parse_broker("wss://me@a,b/mq/tt")
    assert (two.endpoints, two.path, two.username, two.tls) == ((("a", 443), ("b", 443)), "/mq/tt", "me", True)
    assert parse_broker("ws://a").path == "/mqtt"
    assert parse_broker("mqtt://[::1]:1").name == "[::1]:1"
    for wrong in (
        "mqtt://", "http://a", "mqtt://a/path", "mqtt://a?x=1", "mqtt://a,a", "mqtt://a,", "mqtt://a,mqtts://b",
        "mqtt://a,me@b", "mqtt://a:0", "mqtt://a,b:x", "ws://a/x,b", "ws://a/x?y=1",
    ):  # fmt: skip
        with pytest.raises(UsageError):
            parse_broker(wrong)
