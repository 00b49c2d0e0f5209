"""Brokers of every kind from the workstation: without MQTT 5, behind websockets, of several nodes, and none at all."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
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


def swallow_the_first_acknowledgement(listening: socket.socket, broker: Broker) -> None:
    """Between one client and ``broker``, whose packets are handed on but for one PUBACK."""
    here, _ = listening.accept()
    there = socket.create_connection(("127.0.0.1", broker.port))
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> None:
        while data := here.recv(65536):
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)

    threading.Thread(target=ask, daemon=True).start()
    swallowed, waiting = False, b""
    while data := there.recv(65536):
        waiting += data
        # All packets that come here are short: a type, a length in one byte, and so many bytes.
        while len(waiting) >= 2 and len(waiting) >= 2 + waiting[1]:
            packet, waiting = waiting[: 2 + waiting[1]], waiting[2 + waiting[1] :]
            if packet[0] >> 4 == 4 and not swallowed:
                swallowed = True
            else:
                here.sendall(packet)
    here.close()
    there.close()


@pytest.mark.broker
@needs_mosquitto
def test_what_a_node_does_not_acknowledge_is_published_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a node of NATS that took it while the others elected whom they need."""
    monkeypatch.setattr("edge_bundle.broker_session.ACKNOWLEDGE_SECONDS", 0.2)
    broker = Broker(tmp_path / "broker")
    broker.start()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        relay = threading.Thread(target=swallow_the_first_acknowledgement, args=(listening, broker))
        relay.start()
        port = listening.getsockname()[1]
        with (
            BrokerSession(parse_broker(broker.url), "other") as other,
            BrokerSession(parse_broker(f"mqtt://127.0.0.1:{port},127.0.0.1:{broker.port}"), "me") as session,
        ):
            other.subscribe("a")
            session.publish("a", b"x")
            assert [message.payload for message in (other.next_message(60), other.next_message(60)) if message] == [
                b"x", b"x"
            ]  # fmt: skip
        relay.join(60)
    broker.stop()


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
