"""Home Assistant's discovery format: topics, required keys, units that go with classes."""

from __future__ import annotations

import json
import re

from agent.telemetry.home_assistant import announcements
from agent.telemetry.samples import Cpu, DiskUse, Memory, SystemSample
from contract.mqtt.topics import Topics

UNITS = {"temperature": {"°C", "°F", "K"}, "data_size": {"B", "kB", "MB", "GB", "KiB", "MiB", "GiB"}}
"""Units that Home Assistant allows with a device class."""

FULL = SystemSample(
    1.0, cpu=Cpu(1.0, []), memory=Memory(2, 1), disk=DiskUse(2, 1), temperatures={"cpu-thermal.0": 41.0, "it's": 2.0}
)


def test_documents_keep_the_format() -> None:
    topics = Topics("box.7", "edge/v1")
    found = announcements("box.7", topics, FULL, prefix="homeassistant", version="1.2.3", interval=10.0)
    seen = set()
    for topic, payload in found.items():
        assert re.fullmatch(r"homeassistant/sensor/[A-Za-z0-9_-]+/[A-Za-z0-9_-]+/config", topic)
        document = json.loads(payload)
        seen.add(document["unique_id"])
        assert document["state_topic"] in (topics.health, topics.telemetry_llm, topics.telemetry_system)
        assert document["availability_topic"] == topics.status
        assert document["device"]["name"] == "box.7"
        assert document["origin"]["name"]
        assert document["state_class"] in ("measurement", "total_increasing")
        assert ("expire_after" in document) == (document["state_topic"] != topics.health)
        if "device_class" in document:
            assert document["unit_of_measurement"] in UNITS[document["device_class"]]
    assert len(seen) == len(found) == 8


def test_absent_sensors_are_not_announced() -> None:
    found = announcements("box", Topics("box", "edge/v1"), SystemSample(1.0), prefix="ha", version="1", interval=10.0)
    assert {topic.split("/")[3] for topic in found} == {"queue", "active", "output_tokens"}


def test_names_that_look_alike_stay_distinct_and_quotes_stay_inside() -> None:
    sample = SystemSample(1.0, temperatures={"a.b": 1.0, "a b": 2.0, "it's": 3.0})
    found = announcements("box", Topics("box", "edge/v1"), sample, prefix="ha", version="1", interval=10.0)
    assert sum("temperature" in topic for topic in found) == 3
    (quoted,) = [json.loads(payload) for topic, payload in found.items() if "it_s" in topic]
    assert quoted["value_template"] == "{{ value_json.temperatures['it\\'s'] }}"
