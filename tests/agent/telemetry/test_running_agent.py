"""Prometheus and Home Assistant switched on in a running agent that serves a bundle: the page is scraped, the entities'
templates are filled with what the agent really publishes, as Home Assistant does it.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from agent.telemetry import families
from agent.telemetry.exposition import OPEN_METRICS, TEXT
from tests.agent.telemetry.exposition_reader import official, parse
from tests.agent.telemetry.home_assistant_schema import check_document, check_update, fill
from tests.agent.telemetry.running import MACHINES_OWN, SECONDS, running_agent, scrape, scrape_until_ready
from tests.broker import Broker

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
def running(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[tuple[Broker, int]]:
    with running_agent(tmp_path_factory.mktemp("agent"), tiny_bundle) as found:
        yield found


def test_a_scraper_reads_the_page_of_a_running_agent(running: tuple[Broker, int]) -> None:
    _, page = running
    text = scrape_until_ready(page)
    found = parse(text)
    assert {each.name for each in families.FAMILIES if each not in MACHINES_OWN} <= set(found)
    for _, samples in found.values():
        for _, labels in samples:
            assert ("device", "box.7") in labels
            assert not {"pid", "instance", "job"} & {name for name, _ in labels}
    (bundle,) = found["edge_bundle_info"][1]
    assert {("name", "tiny"), ("version", "1.0.0"), ("security_epoch", "2")} <= set(bundle[1])
    expiry = {
        dict(labels)["role"]: at for (_, labels), at in found["edge_trust_metadata_expiry_timestamp_seconds"][1].items()
    }
    assert expiry.keys() == {"root", "targets", "snapshot", "timestamp"}
    assert all(at > time.time() for at in expiry.values())
    assert sum(found["edge_health_reason"][1].values()) == 0
    assert sum(found["edge_disk_bundles_bytes"][1].values()) > 0
    deadline = time.monotonic() + SECONDS
    while sum(parse(text)["edge_broker_connected"][1].values()) != 1:
        assert time.monotonic() < deadline
        text = scrape_until_ready(page)


def test_the_official_client_reads_the_page_of_a_running_agent(running: tuple[Broker, int]) -> None:
    _, page = running
    scrape_until_ready(page)
    kind, text = scrape(page)
    assert kind == TEXT
    plain, _ = official(text)
    kind, text = scrape(page, "application/openmetrics-text; version=1.0.0")
    assert kind == OPEN_METRICS
    opened, _ = official(text, open_metrics=True)
    assert {family.removesuffix("_info") for family in plain} == set(opened)


def test_home_assistant_finds_entities_that_all_have_a_state(running: tuple[Broker, int]) -> None:
    broker, page = running
    scrape_until_ready(page)
    listener = Listener(broker.port)
    base = "edge/v1/d/box.7"
    topics = ("telemetry/system", "telemetry/llm", "health", "status", "reported", "info")
    listener.until(*(f"{base}/{kind}" for kind in topics))
    deadline = time.monotonic() + SECONDS
    while not (found := [topic for topic in listener.last if topic.startswith("homeassistant/")]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    listener.close()
    (topic,) = found
    late = Listener(broker.port)
    # Retained: Home Assistant may start after the device.
    late.until(topic)
    payload, retained = late.last[topic]
    assert retained
    late.close()
    components = check_document(topic, payload)
    states = {
        key: fill(each["value_template"], listener.last[each["state_topic"]][0]) for key, each in components.items()
    }
    for key, each in components.items():
        if "state_class" in each:
            assert float(states[key]) >= 0
        if "json_attributes_template" in each:
            text = fill(each["json_attributes_template"], listener.last[each["json_attributes_topic"]][0])
            assert isinstance(json.loads(text), dict)
    assert (states["ready"], states["bundle"], states["error"]) == ("ON", "tiny@1.0.0", "none")
    assert states["version"] == importlib.metadata.version("edge-bundle")
    assert check_update(states["update"]) == {
        "installed_version": "tiny@1.0.0", "latest_version": "tiny@1.0.0", "in_progress": False,
        "update_percentage": None,
    }  # fmt: skip
    document = json.loads(payload)
    assert fill(document["availability_template"], listener.last[document["availability_topic"]][0]) == "online"
