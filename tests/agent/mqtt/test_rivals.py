"""Two devices of one name at one broker: said, and one of them stays away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from agent.commands.status import show
from agent.config import AgentConfig
from agent.diagnosis.broker import reported_by_agent
from agent.mqtt import connection as connections
from agent.mqtt.loss import CALM_SECONDS, HEARD_SECONDS, SESSION_TAKEN_OVER, Loss, Rivalry
from agent.mqtt.settings import BrokerSettings
from agent.operator.control import Order, call_agent
from agent.state.layout import StateDirectory
from tests.agent.device import Device, sealed
from tests.agent.running_service import running, settings
from tests.agent.test_bad_brokers import Liar, connack, packet
from tests.broker import Broker, find_mosquitto

SECONDS = 120.0
TAKEN = Loss("taken", "said", SESSION_TAKEN_OVER)
CLOSED = Loss("closed", "closed")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


class Listener:
    """Every status document of the device, in order."""

    def __init__(self, port: int) -> None:
        self.seen: list[dict[str, object]] = []
        self._ready = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="listener")
        self.told: list[dict[str, Any]] = []
        self._client.on_message = lambda _c, _u, message: (
            self.seen if message.topic.endswith("/status") else self.told
        ).append(json.loads(message.payload))
        self._client.on_connect = lambda client, *_: client.subscribe(
            [("edge/v1/d/box/status", 1), ("edge/v1/d/box/event/broker", 1)]
        )
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(SECONDS)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_one_of_two_devices_of_one_name_stays_away_and_both_say_why(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(connections, "RIVAL_FIRST_SECONDS", 0.2)
    monkeypatch.setattr(connections, "STANDBY_CHECK_SECONDS", 0.3)
    listener = Listener(broker.port)
    where = BrokerSettings(host="127.0.0.1", port=broker.port, protocol=protocol)  # type: ignore[arg-type]
    devices = [
        Device(AgentConfig(device="box", state_dir=tmp_path, broker=where), tmp_path / f"{number}.db")
        for number in range(2)
    ]
    for device in devices:
        device.start(connect=False)

    devices[0].until(lambda: "another client is connected as edge-box" in devices[0].gateway.connection.problem
                     or "another client is connected as edge-box" in devices[1].gateway.connection.problem)  # fmt: skip
    away, there = sorted(devices, key=lambda device: device.gateway.connection.connected)
    there.until(lambda: there.gateway.connection.subscribed)
    assert not away.gateway.connection.connected
    assert "another client is connected as edge-box" in away.gateway.connection.problem
    # The one that serves hears of it from the one that stays away, and can tell.
    there.until(lambda: bool(there.gateway.broker.warnings))
    assert [each.reason for each in there.call(lambda: there.gateway.broker.warnings)] == ["client_id_taken"]
    assert b'"warnings":["client_id_taken"]' in there.call(lambda: there.gateway._retained["edge/v1/d/box/health"])
    (event,) = listener.told
    assert event["detail"]["reason"] == "client_id_taken"
    assert "another client is connected as edge-box" in event["detail"]["message"]
    flips = len(listener.seen)
    assert flips < 20, "a handful of pushes, not a storm"
    # Looked again and again, without pushing the other out.
    turns = away.gateway.connection.turns
    away.until(lambda: away.gateway.connection.turns > turns + 2)
    assert len(listener.seen) == flips
    assert there.gateway.connection.connected
    # The one that serves is gone: the other takes its place by itself.
    there.stop()
    away.until(lambda: away.gateway.connection.subscribed)
    warnings = away.call(lambda: away.gateway.broker.warnings)
    assert [each.reason for each in warnings] == ["client_id_taken"]
    away.stop()
    listener.close()


def test_a_broker_that_says_who_was_pushed_out_is_believed_at_once(tmp_path: Path) -> None:
    taken_over = connack() + packet(14, b"\x8e\0")
    liar = Liar((taken_over, False), (connack(), True))
    config = AgentConfig(device="box", state_dir=tmp_path, broker=BrokerSettings(host="127.0.0.1", port=liar.port))
    device = Device(config, tmp_path / "state.db").start(sealed())
    device.until(lambda: bool(device.gateway.broker.warnings))
    (warning,) = device.call(lambda: device.gateway.broker.warnings)
    assert warning.reason == "client_id_taken"
    assert "another client is connected as" in warning.message
    device.until(lambda: device.gateway.connection.connected)
    device.stop()
    liar.close()


def test_pushes_are_counted_until_a_connection_is_left_alone() -> None:
    rivalry = Rivalry()
    assert rivalry.verdict(0.0) == ""
    rivalry.lost(TAKEN, 1.0, 10.0, suspicious=True)
    assert (rivalry.losses, rivalry.verdict(10.0)) == (1, "certain")
    rivalry.lost(TAKEN, 1.0, 20.0, suspicious=False)
    assert rivalry.losses == 2
    rivalry.lost(TAKEN, CALM_SECONDS, 1000.0, suspicious=False)
    assert rivalry.losses == 1
    assert rivalry.verdict(1000.0 + HEARD_SECONDS + 1) == ""


def test_without_a_reason_three_in_a_row_make_it_probable_and_all_else_disproves_it() -> None:
    rivalry = Rivalry()
    for now in (1.0, 2.0):
        rivalry.lost(CLOSED, 0.5, now, suspicious=False)
        assert rivalry.verdict(now) == ""
    rivalry.lost(CLOSED, 0.5, 3.0, suspicious=False)
    assert rivalry.verdict(3.0) == "probable"
    rivalry.disproved()
    assert (rivalry.losses, rivalry.verdict(3.0)) == (0, "")
    for end in (
        rivalry.failed,
        lambda: rivalry.lost(CLOSED, 0.5, 4.0, suspicious=True),
        lambda: rivalry.lost(Loss("gone", "silent"), 0.5, 4.0, suspicious=False),
    ):
        rivalry.lost(CLOSED, 0.5, 4.0, suspicious=False)
        rivalry.lost(CLOSED, 0.5, 4.0, suspicious=False)
        end()
        assert rivalry.losses == 0
    rivalry.seen(9.0)
    assert rivalry.verdict(9.0) == "certain"


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_doctor_and_status_of_two_whole_agents_say_it(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connections, "RIVAL_FIRST_SECONDS", 0.2)
    monkeypatch.setattr(connections, "STANDBY_CHECK_SECONDS", 0.3)
    places = [tmp_path / "one", tmp_path / "two"]
    with running(settings(places[0], broker.port)) as one, running(settings(places[1], broker.port)) as two:
        for agent in (one, two):
            agent.until(lambda agent=agent: bool(agent.service.parts.frontend.gateway.broker.warnings))  # type: ignore[misc]
        for place in places:
            (found,) = reported_by_agent(StateDirectory(place))
            assert found.verdict == "bad"
            assert "another client is connected as edge-box" in found.detail
            overview = call_agent(StateDirectory(place), Order(op="status"), lambda _reported: None)
            assert overview is not None
            show(overview)
            assert "[client_id_taken]" in capsys.readouterr().out
