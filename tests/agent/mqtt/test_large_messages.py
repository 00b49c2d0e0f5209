"""Brokers that end the connection at a message of a certain size, said or not: the device gives up that message, says
so, and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.mqtt import Undeliverable
from agent.mqtt.loss import Loss
from tests.agent.device import Device, sealed
from tests.broker import Broker, find_mosquitto
from tests.e2e.raw_client import RawClient

SECONDS = 120.0

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

KINDS = {
    # It answers with a reason that the standard does not have in that place.
    "message_size_limit, MQTT 5": ("message_size_limit 2000\n", "5"),
    # CONNACK has no word for it there.
    "max_packet_size, MQTT 3.1.1": ("max_packet_size 2000\n", "3.1.1"),
}


@pytest.fixture(params=KINDS)
def small(
    request: pytest.FixtureRequest, tmp_path: Path, connect: Callable[..., Device]
) -> Iterator[tuple[Device, RawClient, Broker]]:
    """A device that answers, and a client, at a broker that takes 2,000 bytes."""
    settings, protocol = KINDS[request.param]
    broker = Broker(tmp_path / "small", settings=settings)
    broker.start()
    device = connect(broker.port, protocol=protocol)
    device.until(lambda: device.gateway.connection.subscribed)
    device.run(device.serving.swap(sealed(), "drain"))
    client = RawClient(broker.port, "me", "box")
    yield device, client, broker
    client.close()
    broker.stop()


def heard(client: RawClient, kind: str, holds: Callable[[dict[str, object]], bool]) -> dict[str, object]:
    """The next message of the device of ``kind`` that ``holds``."""
    while True:
        topic, body = client.device_messages.get(timeout=SECONDS)
        if topic == kind and holds(body):
            return body


def test_an_answer_that_is_too_large_is_given_up_told_and_remembered(
    small: tuple[Device, RawClient, Broker], connect: Callable[..., Device], said: Callable[[], str]
) -> None:
    device, client, broker = small
    client.ask("long", "count 700", stream=False)
    client.ask("short", "count 3", stream=False)
    error = client.wait_answer("long", SECONDS).lasts[0]["error"]
    assert (error["code"], error["type"]) == (500, "answer_too_large")
    assert client.wait_answer("short", SECONDS).text == "0 1 2 "
    event = heard(client, "event/broker", lambda _: True)["detail"]
    assert isinstance(event, dict)
    assert event["reason"] == "message_too_large"
    assert event["topic"] == "edge/v1/c/me/r/box/long"
    assert event["bytes"] > 2000
    assert f"{event['bytes']:,} bytes" in error["message"]
    health = heard(client, "health", lambda body: bool(body.get("warnings")))
    assert health["warnings"] == ["message_too_large"]
    assert f"edge/v1/c/me/r/box/long is given up: it has {event['bytes']:,} bytes" in said()
    # The next one is told at once, on the same connection.
    turns = said().count("connected to the broker")
    client.ask("longer", "count 800", stream=False)
    assert client.wait_answer("longer", SECONDS).lasts[0]["error"]["type"] == "answer_too_large"
    assert said().count("connected to the broker") == turns
    limit = device.call(lambda: device.gateway.connection.limit)
    assert limit is not None
    assert limit.refused_bytes == event["bytes"]
    # After a restart, too.
    device.stop()
    again = connect(broker.port, protocol=device.config.broker.protocol)
    again.stop()
    memory = device.state.with_suffix(".broker")
    assert json.loads(memory.read_bytes())["refused_bytes"] == event["bytes"]
    memory.rename(again.state.with_suffix(".broker"))
    revived = Device(again.config, again.state).start()
    try:
        assert revived.gateway.connection.limit == limit
    finally:
        revived.stop()


def test_retained_documents_that_are_too_large_keep_nothing_else_up(
    small: tuple[Device, RawClient, Broker], said: Callable[[], str]
) -> None:
    device, client, _ = small
    connection = device.gateway.connection
    documents = {f"homeassistant/sensor/box/{number}/config": b"x" * (1000 + 400 * number) for number in range(6)}
    device.call(lambda: device.gateway.announce(documents))
    device.call(lambda: device.gateway.event("install", {"bundle": "x" * 3000}))
    device.until(lambda: connection.undelivered == 0 and connection.subscribed)
    client.ask("q", "count 3", stream=False)
    assert client.wait_answer("q", SECONDS).text == "0 1 2 "
    refused = device.call(lambda: dict(connection.refused))
    given_up = [topic for topic in documents if topic in refused]
    assert given_up[-2:] == ["homeassistant/sensor/box/4/config", "homeassistant/sensor/box/5/config"]
    assert "homeassistant/sensor/box/1/config" not in refused
    # Said again at every connection they would end it again.
    before = said().count("connected to the broker")
    device.call(connection._backoff.reset)
    device.call(lambda: connection._link and connection._link.end(Loss("the network was away", "closed")))
    device.until(lambda: not connection.connected)
    device.until(lambda: connection.subscribed and connection.undelivered == 0)
    client.ask("q2", "count 3", stream=False)
    assert client.wait_answer("q2", SECONDS).text == "0 1 2 "
    assert said().count("connected to the broker") == before + 1


def test_telemetry_that_is_too_large_is_left_out(tmp_path: Path, connect: Callable[..., Device]) -> None:
    """Nobody acknowledges it, and it comes again every ten seconds."""
    broker = Broker(tmp_path / "small", settings="max_packet_size 2000\n")
    broker.start()
    device = connect(broker.port, protocol="3.1.1")
    connection = device.gateway.connection
    losses: list[str] = []
    device.call(lambda: setattr(device.gateway, "on_down", losses.append))
    for number in range(1, 4):
        device.until(lambda: connection.subscribed and connection.undelivered == 0)
        device.call(lambda: device.gateway.telemetry(b"x" * 3000, None))
        device.until(lambda number=number: len(losses) >= number)  # type: ignore[misc]
    device.until(lambda: connection.subscribed and connection.undelivered == 0)
    device.call(lambda: device.gateway.telemetry(b"x" * 3000, b"{}"))
    device.call(lambda: device.gateway.event("install", {"bundle": "m@1.0.0"}))
    device.until(lambda: connection.undelivered == 0)
    assert len(losses) == 3
    (warning,) = device.call(lambda: device.gateway.broker.warnings)
    assert warning.reason == "message_too_large"
    assert "edge/v1/d/box/telemetry/system was not delivered: it has 3,0" in warning.message
    assert "edge/v1/d/box/telemetry/system" in device.call(lambda: connection.refused)
    device.stop()
    broker.stop()


def test_what_is_said_of_itself_comes_to_rest() -> None:
    """A health document that is given up for what it says of being given up must not go round for ever."""
    from agent.mqtt.broker_health import BrokerHealth
    from contract.mqtt.topics import Topics

    topics = Topics("box")
    health = BrokerHealth(topics, lambda: 1.0)
    assert health.given_up(Undeliverable(topics.health, 3000)) is not None
    assert health.given_up(Undeliverable(topics.health, 3001)) is None
    assert health.given_up(Undeliverable(topics.event("broker"), 3001)) is None
