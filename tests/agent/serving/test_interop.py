"""Strangers' programs: mosquitto's own clients, both protocol versions, and a broker that comes and goes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.device import sealed
from tests.agent.serving.conftest import MakeDevice
from tests.broker import Broker
from tests.e2e.raw_client import Answer, RawClient

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(shutil.which("mosquitto_rr") is None, reason="mosquitto-clients is not installed"),
]


def tool(name: str, broker: Broker, *arguments: str, **options: Any) -> str:
    command = [name, "-h", "127.0.0.1", "-p", str(broker.port), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, **options).stdout


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "own-broker")
    yield broker
    broker.stop()


@pytest.mark.parametrize("agent_protocol", ["5", "3.1.1"])
def test_request_and_response_with_mosquitto_rr(
    make_device: MakeDevice, shared_broker: Broker, names: tuple[str, str], agent_protocol: str
) -> None:
    device, client = names
    make_device(protocol=agent_protocol).start(sealed())
    out = tool(
        "mosquitto_rr", shared_broker, "-V", "mqttv5", "-W", "20",
        "-t", f"edge/v1/d/{device}/generate/{client}", "-e", f"edge/v1/c/{client}/r/{device}/q1",
        "-m", '{"id": "q1", "prompt": "count 3", "stream": false}',
    )  # fmt: skip
    assert json.loads(out)["text"] == "0 1 2 "


def test_correlation_data_is_the_id_and_comes_back(
    make_device: MakeDevice, shared_broker: Broker, names: tuple[str, str]
) -> None:
    device, client = names
    make_device().start(sealed())
    reply = f"edge/v1/c/{client}/r/{device}/corr-7"
    out = tool(
        "mosquitto_rr", shared_broker, "-V", "mqttv5", "-W", "20", "-F", "%D %p",
        "-t", f"edge/v1/d/{device}/generate/{client}", "-e", reply,
        "-D", "publish", "correlation-data", "corr-7", "-m", '{"prompt": "count 2", "stream": false}',
    )  # fmt: skip
    correlation, _, body = out.partition(" ")
    assert correlation == "corr-7"
    assert json.loads(body)["text"] == "0 1 "


def test_another_response_topic_is_refused_on_the_right_one(
    make_device: MakeDevice, client: RawClient, shared_broker: Broker
) -> None:
    make_device().start(sealed())
    client.answers["steer"] = Answer(0.0)
    tool(
        "mosquitto_pub", shared_broker, "-V", "mqttv5", "-q", "1",
        "-t", f"edge/v1/d/{client.device}/generate/{client.name}",
        "-D", "publish", "response-topic", "edge/v1/c/victim/r/x/y", "-m", '{"id": "steer", "prompt": "count 1"}',
    )  # fmt: skip
    error = client.wait_answer("steer").lasts[0]["error"]
    assert (error["code"], error["field"]) == (400, "response_topic")


@pytest.mark.parametrize("agent_protocol", ["5", "3.1.1"])
def test_mqtt_311_clients_put_the_id_into_the_body(
    make_device: MakeDevice, shared_broker: Broker, names: tuple[str, str], agent_protocol: str
) -> None:
    device, client = names
    make_device(protocol=agent_protocol).start(sealed())
    listen = [
        "-V", "mqttv311", "-q", "1", "-c", "-i", f"sub-{client}", "-t", f"edge/v1/c/{client}/r/+/+",
    ]  # fmt: skip
    tool("mosquitto_sub", shared_broker, *listen, "-E")
    tool(
        "mosquitto_pub", shared_broker, "-V", "mqttv311", "-q", "1",
        "-t", f"edge/v1/d/{device}/generate/{client}", "-m", '{"id": "old", "prompt": "count 3", "stream": false}',
    )  # fmt: skip
    topic, _, body = tool("mosquitto_sub", shared_broker, *listen, "-C", "1", "-W", "20", "-F", "%t %p").partition(" ")
    assert topic == f"edge/v1/c/{client}/r/{device}/old"
    assert json.loads(body)["text"] == "0 1 2 "


def test_message_expiry_is_a_deadline(make_device: MakeDevice, client: RawClient, shared_broker: Broker) -> None:
    make_device().start(sealed())
    client.answers["soon"] = Answer(0.0)
    tool(
        "mosquitto_pub", shared_broker, "-V", "mqttv5", "-q", "1",
        "-t", f"edge/v1/d/{client.device}/generate/{client.name}",
        "-D", "publish", "message-expiry-interval", "1", "-m", '{"id": "soon", "prompt": "hold 3"}',
    )  # fmt: skip
    assert client.wait_answer("soon").lasts[0]["finish_reason"] == "deadline"


def test_broker_that_is_not_there_at_start_and_goes_away_in_between(
    make_device: MakeDevice, own_broker: Broker, names: tuple[str, str]
) -> None:
    device = make_device(broker=own_broker).start(sealed(), connect=False)
    own_broker.start()
    device.until(lambda: device.gateway.connection.subscribed)
    client = RawClient(own_broker.port, names[1], names[0])
    client.ask("before", "hold 3")
    assert client.next_frame()[1]["d"] == "0 "
    client.close()
    own_broker.stop()
    device.until(lambda: not device.gateway.connection.connected)
    # The answer is finished while nobody can be told.
    device.call(device.workers.current.let_go)
    device.until(lambda: device.serving.active == 0)
    own_broker.start()
    device.until(lambda: device.gateway.connection.subscribed)
    client = RawClient(own_broker.port, names[1], names[0])
    try:
        client.ask("before", "hold 3")
        assert client.wait_answer("before").lasts[0]["text"] == "0 1 2 "
        assert len(device.workers.current.admitted) == 1
        client.ask("after", "count 1")
        assert client.wait_answer("after").lasts[0]["text"] == "0 "
    finally:
        client.close()


def test_request_sent_while_the_device_is_away_is_answered_when_it_is_back(
    make_device: MakeDevice, client: RawClient
) -> None:
    make_device().start(sealed()).kill()
    client.ask("patient", "count 2")
    make_device().start(sealed())
    assert client.wait_answer("patient").lasts[0]["text"] == "0 1 "


def test_last_will_says_offline_and_birth_says_online(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    assert client.next_device_message("status")["online"] is True
    device.kill()
    assert client.next_device_message("status")["online"] is False
    again = make_device().start(sealed())
    assert client.next_device_message("status")["online"] is True
    again.stop()
    assert client.next_device_message("status")["online"] is False


def test_desired_documents_reach_the_installation(make_device: MakeDevice, client: RawClient) -> None:
    client.publish(f"edge/v1/d/{client.device}/desired", b'{"kept": true}', retain=True)
    device = make_device().start()
    device.until(lambda: device.desired == [b'{"kept": true}'])
    client.publish(f"edge/v1/d/{client.device}/desired", b"", retain=True)
    device.until(lambda: device.desired[-1] == b"")


def test_the_brokers_copy_of_a_desired_document_is_told_from_one_that_is_published_again(
    make_device: MakeDevice, client: RawClient
) -> None:
    """Who publishes it again wants it tried now; a reconnection says nothing of the kind."""
    seen: list[tuple[bytes, bool]] = []
    client.publish(f"edge/v1/d/{client.device}/desired", b'{"kept": true}', retain=True)
    device = make_device()
    device.on_desired = lambda payload, retained: seen.append((payload, retained))
    device.start()
    device.until(lambda: seen == [(b'{"kept": true}', True)])
    client.publish(f"edge/v1/d/{client.device}/desired", b'{"kept": true}', retain=True)
    device.until(lambda: seen[1:] == [(b'{"kept": true}', False)])
    client.publish(f"edge/v1/d/{client.device}/desired", b"", retain=True)
    device.until(lambda: len(seen) == 3)
