"""Which host, which version of MQTT, which transport; and what speaks on a port where no broker answers."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.mqtt.connector import explain
from agent.mqtt.loss import Loss
from agent.mqtt.settings import BrokerSettings, TlsSettings
from contract.mqtt.protocol_detection import Spoken, find_out
from tests.agent.device import Device, sealed
from tests.agent.test_bad_brokers import CONNACK, CONNECT, Liar, packet
from tests.broker import Broker, find_mosquitto, free_port
from tests.certificates import Authority, tls_broker
from tests.e2e.raw_client import RawClient
from tests.nats import Nats

SECONDS = 120.0

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Nats]:
    server = Nats(tmp_path / "nats")
    server.start()
    yield server
    server.stop()


def test_a_client_id_that_the_broker_does_not_take_is_said_with_what_to_write(
    nats: Nats, connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    device = connect(nats.port, client_id="box.7")
    device.until(lambda: "leave broker.client_id out" in device.gateway.broker.problem)
    assert "Client identifier not valid" in said()


@pytest.mark.broker
@needs_mosquitto
def test_the_next_host_is_taken_when_one_is_gone_and_said(
    tmp_path: Path, connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    first, second = Broker(tmp_path / "first"), Broker(tmp_path / "second")
    second.start()
    device = connect(0, hosts=[f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"])
    connection = device.gateway.connection
    device.until(lambda: connection.subscribed)
    assert device.call(lambda: device.gateway.broker.address) == f"127.0.0.1:{second.port}"
    assert f"connected to the broker 127.0.0.1:{second.port}" in said()
    device.run(device.serving.swap(sealed(), "drain"))
    client = RawClient(second.port, "me", "box")
    while True:
        kind, body = client.device_messages.get(timeout=SECONDS)
        if kind == "health":
            assert body["broker"]["address"] == f"127.0.0.1:{second.port}"
            break
    client.close()
    first.start()
    second.stop()
    device.until(lambda: connection.subscribed and connection.address == f"127.0.0.1:{first.port}")
    client = RawClient(first.port, "me", "box")
    client.ask("q", "count 3", stream=False)
    assert client.wait_answer("q", SECONDS).text == "0 1 2 "
    client.close()
    first.stop()
    device.until(lambda: not connection.connected and bool(connection.problem))
    assert f"127.0.0.1:{first.port}: Connection refused" in connection.problem
    assert f"127.0.0.1:{second.port}: Connection refused" in connection.problem


def test_a_broker_that_knows_no_mqtt_5_is_spoken_to_in_3_1_1(
    nats: Nats, connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    device = connect(nats.port)
    device.until(lambda: device.gateway.connection.subscribed and device.gateway.connection.undelivered == 0)
    broker = device.call(lambda: device.gateway.broker)
    assert (broker.protocol, broker.connected) == ("3.1.1", True)
    assert "does not know MQTT 5: taking 3.1.1" in said()


def test_where_mqtt_5_is_demanded_the_key_to_change_is_named(nats: Nats, connect: Callable[..., Device]) -> None:
    device = connect(nats.port, protocol="5")
    device.until(lambda: bool(device.gateway.connection.problem))
    assert 'set broker.protocol = "auto"' in device.gateway.connection.problem


def test_an_old_broker_that_closes_without_a_word_is_tried_in_3_1_1_and_5_is_not_given_up_for_good(
    connect: Callable[..., Device],
) -> None:
    old = Old()
    device = connect(old.port)
    connection = device.gateway.connection
    device.until(lambda: connection.connected)
    assert old.levels == [5, 5, 5, 4]
    device.call(lambda: connection._link and connection._link.end(Loss("the network was away", "closed")))
    device.until(lambda: len(old.levels) >= 6 and connection.connected)
    assert old.levels[4:6] == [5, 4]
    old.close()


class Old(Liar):
    """Knows MQTT 3.1.1 alone, and closes the connection of whoever speaks another one."""

    def __init__(self) -> None:
        self.levels: list[int] = []
        super().__init__((b"", True))

    def _serve(self, connection: socket.socket, answer: bytes, go_on: bool) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                kind, _, body = self._read(stream)
                if kind != CONNECT or body[:6] != b"\0\4MQTT":
                    return
                if body.endswith(b"\0\0") and len(body) == 12:
                    return  # asked what it speaks
                self.levels.append(body[6])
                if body[6] == 4:
                    connection.sendall(packet(CONNACK, b"\0\0"))
                    while True:
                        self._read(stream)
            except (OSError, EOFError, IndexError):
                return


@pytest.mark.parametrize("tls", [False, True])
def test_websockets(tmp_path: Path, authority: Authority, connect: Callable[..., Device], tls: bool) -> None:
    server = Nats(tmp_path / "nats", certificate=authority.directory / "good.pem" if tls else None)
    server.start()
    settings = TlsSettings(ca=authority.certificate) if tls else None
    device = connect(server.web_port, transport="websockets", tls=settings)
    device.until(lambda: device.gateway.connection.subscribed)
    device.run(device.serving.swap(sealed(), "drain"))
    client = connect_client(server.port)
    client.ask("q", "count 3", stream=False)
    assert client.wait_answer("q", SECONDS).text == "0 1 2 "
    # Larger than what a socket takes at once, in both directions.
    text = "count 20000 " + "x" * 700_000
    client.ask("large", text, stream=False, max_tokens=30000)
    assert client.wait_answer("large", SECONDS).text.endswith("19999 ")
    client.close()
    device.stop()
    server.stop()


def connect_client(port: int) -> RawClient:
    return RawClient(port, "me", "box", protocol="3.1.1")


class Silent:
    """Takes connections and says nothing, or says one thing first."""

    def __init__(self, greeting: bytes = b"") -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._greeting = greeting
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.sendall(self._greeting)
            self._held.append(connection)

    def close(self) -> None:
        self._server.close()
        for each in self._held:
            each.close()


@pytest.fixture
def web(authority: Authority) -> Iterator[Callable[[bool], int]]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(tls: bool) -> int:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(authority.directory / "good.pem", authority.directory / "good.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.broker
@needs_mosquitto
def test_a_port_that_speaks_something_else_is_named(
    tmp_path: Path,
    authority: Authority,
    nats: Nats,
    web: Callable[[bool], int],
    connect: Callable[..., Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A web server waits for the end of a line.
    monkeypatch.setattr("agent.mqtt.connector.CONNECT_SECONDS", 2.0)
    plain = Broker(tmp_path / "plain")
    plain.start()
    closed = tls_broker(tmp_path / "tls", authority, "good")
    trusted = TlsSettings(ca=authority.certificate)
    cases: list[tuple[int, dict[str, object], str]] = [
        (closed.port, {}, "speaks MQTT over TLS: add a [broker.tls] table"),
        (plain.port, {"tls": trusted}, "speaks MQTT: take its port with TLS (often 8883), or remove [broker.tls]"),
        (web(False), {}, "speaks HTTP (a web server): check broker.port"),
        (web(True), {}, "speaks HTTP (a web server) over TLS: check broker.port"),
        (web(True), {"tls": trusted}, "speaks HTTP (a web server) over TLS: check broker.port"),
        (nats.web_port, {}, 'speaks MQTT over websockets: set broker.transport = "websockets"'),
        (plain.port, {"transport": "websockets"}, 'speaks MQTT: set broker.transport = "tcp"'),
        (web(False), {"transport": "websockets"}, "opens no websocket: check broker.path"),
    ]
    devices = [(connect(port, **settings), text) for port, settings, text in cases]
    for device, text in devices:
        device.until(lambda device=device: bool(device.gateway.connection.problem))  # type: ignore[misc]
        assert text in device.gateway.connection.problem
    plain.stop()
    closed.stop()


def test_what_is_silent_or_greets_is_not_taken_for_anything() -> None:
    silent, shell = Silent(), Silent(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.MonkeyPatch.context() as hurried:
        hurried.setattr("contract.mqtt.protocol_detection.SECONDS", 0.2)
        assert find_out("127.0.0.1", silent.port) == Spoken("", False)
    assert find_out("127.0.0.1", shell.port) == Spoken("ssh", False)
    assert find_out("127.0.0.1", free_port()) == Spoken("", False)
    assert explain(BrokerSettings(), Spoken("", False)) == ""
    assert explain(BrokerSettings(), Spoken("mqtt", False)) == ""
    assert explain(BrokerSettings(), Spoken("ssh", False)) == "that port speaks SSH: check broker.port"
    assert "add a [broker.tls] table" in explain(BrokerSettings(), Spoken("", True))
    silent.close()
    shell.close()
