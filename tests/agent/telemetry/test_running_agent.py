"""Prometheus and Home Assistant switched on in a running agent: the page is scraped, the sensors' templates are filled
with what the agent really publishes, as Home Assistant does it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import jinja2.sandbox
import paho.mqtt.client as mqtt
import pytest

from tests.agent.telemetry.test_prometheus import parse
from tests.broker import Broker, free_port

SECONDS = 60.0
pytestmark = pytest.mark.broker


class Listener:
    """The last message of every topic, as a home automation server would keep it."""

    def __init__(self, port: int) -> None:
        self.last: dict[str, tuple[bytes, bool]] = {}
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe("#")
        self._client.on_message = lambda _c, _d, message: self.last.update(
            {message.topic: (message.payload, message.retain)}
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def until(self, *topics: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not set(topics) <= self.last.keys():
            assert time.monotonic() < deadline, sorted(self.last)
            time.sleep(0.02)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, int]]:
    directory = tmp_path_factory.mktemp("agent")
    broker, page = Broker(directory / "broker"), free_port()
    broker.start()
    config = directory / "agent.toml"
    config.write_text(
        f'device = "box.7"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {broker.port}\n'
        f"[telemetry]\ninterval_seconds = 0.3\n[telemetry.prometheus]\nport = {page}\n"
        "[telemetry.home_assistant]\nenabled = true\n"
    )
    agent = subprocess.Popen([sys.executable, "-m", "agent.cli", "run", "--config", str(config)])
    yield broker, page
    agent.terminate()
    assert agent.wait(SECONDS) == 0
    broker.stop()


def test_a_scraper_reads_the_page_of_a_running_agent(running: tuple[Broker, int]) -> None:
    broker, page = running
    listener = Listener(broker.port)
    listener.until("edge/v1/d/box.7/telemetry/system")
    listener.close()
    with urllib.request.urlopen(f"http://127.0.0.1:{page}/metrics", timeout=SECONDS) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = parse(answer.read().decode())
    assert {"edge_memory_available_bytes", "edge_requests_waiting", "gen_ai_server_request_duration_seconds"} <= set(
        families
    )
    for _, samples in families.values():
        for _, labels in samples:
            assert ("device", "box.7") in labels


def fill(template: str, payload: bytes) -> str:
    """As Home Assistant does: Jinja2 in a sandbox, undefined names are errors."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(value_json=json.loads(payload))


def test_home_assistant_finds_sensors_that_all_have_a_number(running: tuple[Broker, int]) -> None:
    broker, _ = running
    listener = Listener(broker.port)
    base = "edge/v1/d/box.7"
    listener.until(*(f"{base}/{kind}" for kind in ("telemetry/system", "telemetry/llm", "health", "status")))
    found: dict[str, Any] = {}
    deadline = time.monotonic() + SECONDS
    while len(found) < 5 and time.monotonic() < deadline:
        found = {topic: payload for topic, (payload, _) in listener.last.items() if topic.startswith("homeassistant/")}
        time.sleep(0.02)
    listener.close()
    assert len(found) >= 5
    late = Listener(broker.port)
    # Retained: Home Assistant may start after the device.
    late.until(*found)
    assert all(late.last[topic][1] for topic in found)
    late.close()
    for payload in found.values():
        document = json.loads(payload)
        value = fill(document["value_template"], listener.last[document["state_topic"]][0])
        assert float(value) >= 0
        assert fill(document["availability_template"], listener.last[document["availability_topic"]][0]) == "online"
