"""Brokers without shared subscriptions, said or not: nobody is told that a group is served which hears nothing."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from agent.config import AgentConfig
from agent.diagnosis.broker import group_round_trip, round_trip
from agent.mqtt import group_probe
from agent.mqtt.connection import Connection
from agent.mqtt.handler import Handler, Session
from agent.mqtt.settings import BrokerSettings
from contract.mqtt.topics import Topics
from tests.agent.device import Device, sealed
from tests.agent.test_bad_brokers import Liar, connack
from tests.agent.waiting import until
from tests.broker import Broker, find_mosquitto
from tests.nats import Nats

SECONDS = 120.0
SHARED_SUBSCRIPTION_AVAILABLE = b"\x2a"

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture
def only_shared_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What never comes is waited for a moment; what comes, as long as it takes."""
    comes_back = group_probe._comes_back

    async def asked(settings: BrokerSettings, client_id: str, topics: Topics, topic: str) -> str:
        monkeypatch.setattr(group_probe, "DELIVERY_SECONDS", 0.5 if topic.startswith("$share/") else SECONDS)
        return await comes_back(settings, client_id, topics, topic)

    monkeypatch.setattr(group_probe, "_comes_back", asked)


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Callable[[int], Device]]:
    made: list[Device] = []

    def start(port: int) -> Device:
        settings = BrokerSettings(host="127.0.0.1", port=port)
        config = AgentConfig(device="box", state_dir=tmp_path, groups=["office"], broker=settings)
        made.append(Device(config, tmp_path / "state.db").start(sealed()))
        return made[-1]

    yield start
    for device in made:
        device.stop()


def warnings(device: Device) -> list[str]:
    return device.call(lambda: [each.reason for each in device.gateway.broker.warnings])


@pytest.mark.usefixtures("only_shared_is_lost")
def test_a_broker_that_grants_shared_subscriptions_and_delivers_nothing(
    tmp_path: Path, member: Callable[[int], Device], said: Callable[[], str]
) -> None:
    nats = Nats(tmp_path / "nats")
    nats.start()
    device = member(nats.port)
    device.until(lambda: bool(device.gateway.broker.warnings))
    assert warnings(device) == ["groups_not_delivered"]
    assert "grants shared subscriptions and delivers nothing" in said()
    health = device.call(lambda: device.gateway._retained["edge/v1/d/box/health"])
    assert b'"warnings":["groups_not_delivered"]' in health
    (found,) = group_round_trip(device.config.broker, Topics("box"), ["office"])
    assert found.verdict == "bad"
    assert "requests to groups do not arrive" in found.detail
    nats.stop()


class ClosesOnMqtt5(Liar):
    """Hands connections on to the broker at ``behind``; closes those in MQTT 5 silently, as RabbitMQ 3.10 does."""

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self.asked = threading.Event()
        self.answers = threading.Event()
        self.answers.set()
        super().__init__((b"", True))

    def _serve(self, connection: socket.socket, _answer: bytes, _go_on: bool) -> None:
        with connection, socket.create_connection(("127.0.0.1", self._behind)) as onward:
            first = connection.recv(65536)
            if first[2:8] != b"\0\4MQTT" or first[8] == 5:
                return
            if b"patient" in first:
                self.asked.set()
                self.answers.wait(120)
            onward.sendall(first)
            threading.Thread(target=self._carry, args=(onward, connection), daemon=True).start()
            self._carry(connection, onward)

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                sink.sendall(received)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.usefixtures("only_shared_is_lost")
def test_an_old_broker_that_closes_without_a_word_is_asked_in_the_version_that_it_knows(
    tmp_path: Path, member: Callable[[int], Device]
) -> None:
    nats = Nats(tmp_path / "nats")
    nats.start()
    old = ClosesOnMqtt5(nats.port)
    device = member(old.port)
    device.until(lambda: bool(device.gateway.broker.warnings))
    assert warnings(device) == ["groups_not_delivered"]
    (groups,) = group_round_trip(device.config.broker, Topics("box"), ["office"])
    assert "grants shared subscriptions and delivers nothing" in groups.detail
    found = {each.check: each for each in round_trip(device.config.broker, Topics("box"))}
    assert (found["broker"].verdict, found["access"].verdict) == ("ok", "ok")
    assert "MQTT 3.1.1" in found["broker"].detail
    old.close()
    nats.stop()


def test_an_old_broker_that_takes_its_time_is_not_unreachable_meanwhile(tmp_path: Path) -> None:
    nats = Nats(tmp_path / "nats")
    nats.start()
    old = ClosesOnMqtt5(nats.port)
    old.answers.clear()

    async def run() -> None:
        settings = BrokerSettings(host="127.0.0.1", port=old.port)
        connection = Connection(settings, Session("patient", clean=True, quiet=True), Handler())
        task = asyncio.create_task(connection.run())
        await until(old.asked.is_set)
        assert connection.problem, "it was closed before"
        assert not connection.unreachable
        old.answers.set()
        await until(lambda: connection.connected)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()

    asyncio.run(run())
    old.close()
    nats.stop()


def test_a_port_that_always_closes_is_given_up_once_every_version_was_tried() -> None:
    closing = Liar((b"", False))
    (found,) = group_round_trip(BrokerSettings(host="127.0.0.1", port=closing.port), Topics("box"), ["office"])
    assert found.verdict == "note"
    assert closing.connections >= 4
    closing.close()


@pytest.mark.broker
@needs_mosquitto
def test_a_broker_that_delivers_is_believed_and_no_member_sees_the_question(
    tmp_path: Path, member: Callable[[int], Device], said: Callable[[], str]
) -> None:
    broker = Broker(tmp_path / "broker")
    broker.start()
    heard: queue.Queue[str] = queue.Queue()
    other = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="other")
    ready: queue.Queue[None] = queue.Queue()
    other.on_connect = lambda client, *_: client.subscribe("$share/office/edge/v1/g/office/generate/+", 1)
    other.on_subscribe = lambda *_: ready.put(None)
    other.on_message = lambda _c, _u, message: heard.put(message.topic)
    other.connect("127.0.0.1", broker.port)
    other.loop_start()
    ready.get(timeout=SECONDS)
    device = member(broker.port)
    (found,) = group_round_trip(device.config.broker, Topics("box"), ["office"])
    assert found.verdict == "ok"
    device.until(lambda: not device.gateway._group_up.is_set())
    for number in range(20):
        other.publish("edge/v1/g/office/generate/me", b"{}", 1).wait_for_publish(SECONDS)
        if not heard.empty():
            break
        assert number < 19
    assert heard.get(timeout=SECONDS) == "edge/v1/g/office/generate/me", "and nothing before"
    assert warnings(device) == []
    other.disconnect()
    other.loop_stop()
    device.stop()
    broker.stop()


@pytest.mark.broker
@needs_mosquitto
def test_who_asks_at_the_same_time_takes_no_message_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent asks when it connects, and somebody calls ``doctor`` meanwhile."""
    names: list[str] = []
    comes_back = group_probe._comes_back

    async def asked(settings: BrokerSettings, client_id: str, topics: Topics, topic: str) -> str:
        names.append(topic)
        return await comes_back(settings, client_id, topics, topic)

    monkeypatch.setattr(group_probe, "_comes_back", asked)
    broker = Broker(tmp_path / "broker")
    broker.start()
    settings = BrokerSettings(host="127.0.0.1", port=broker.port)
    for _ in range(2):
        (found,) = group_round_trip(settings, Topics("box"), ["office"])
        assert found.verdict == "ok"
    assert len(set(names)) == 2, "of one shared subscription each of the two would get what the other one sent"
    assert all(re.fullmatch(r"\$share/box-[0-9a-f]{8}/edge/v1/d/box/doctor", name) for name in names)
    broker.stop()


def test_a_broker_that_says_that_it_has_none_is_not_asked_for_any(member: Callable[[int], Device]) -> None:
    liar = Liar((connack(SHARED_SUBSCRIPTION_AVAILABLE + b"\0"), True))
    device = member(liar.port)
    device.until(lambda: bool(device.gateway.broker.warnings))
    assert warnings(device) == ["groups_not_delivered"]
    assert "it has no subscription of that name" in device.call(lambda: device.gateway.broker.warnings[0].message)
    group = device.gateway.group_connection
    assert group is not None
    assert list(group.refused) == ["$share/office/edge/v1/g/office/generate/+"]
    liar.close()


def test_where_not_even_a_plain_message_comes_back_it_is_said_that_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    liar = Liar((connack(), True))
    settings = BrokerSettings(host="127.0.0.1", port=liar.port)
    monkeypatch.setattr("agent.mqtt.group_probe.DELIVERY_SECONDS", 0.3)
    (found,) = group_round_trip(settings, Topics("box"), ["office"])
    assert found.verdict == "bad"
    assert "cannot determine" in found.detail
    liar.close()
