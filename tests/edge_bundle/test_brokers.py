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
