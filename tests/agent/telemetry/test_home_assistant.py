"""Home Assistant's discovery format: topic, keys, units of classes, and templates that fit what is published."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from agent.telemetry.home_assistant import components, discovery
from agent.telemetry.samples import Cpu, DiskUse, Memory, SystemSample
from contract.mqtt.desired import BundleReference
from contract.mqtt.device import Health, Status
from contract.mqtt.encoding import encode
from contract.mqtt.faults import ReportedError
from contract.mqtt.reports import BundleState, Progress, Reported
from contract.mqtt.topics import Topics
from tests.agent.telemetry.home_assistant_schema import check_document, check_update, fill

TOPICS = Topics("box.7", "edge/v1")
FULL = SystemSample(
    1.0, cpu=Cpu(1.0, []), memory=Memory(2, 1), disk=DiskUse(2, 1), temperatures={"cpu-thermal.0": 41.0, "it's": 2.0}
)
DEVICE = {"ready", "bundle", "update", "error", "version", "queue", "active"}


def announced(sample: SystemSample, interval: float = 10.0, **gone: str) -> dict[str, dict[str, Any]]:
    made = discovery(
        "box.7", TOPICS, components(TOPICS, sample, interval=interval), prefix="homeassistant", version="1.2.3",
        gone=gone,
    )  # fmt: skip
    return check_document(made.topic, made.payload)


def test_document_keeps_the_format() -> None:
    found = announced(FULL)
    assert found.keys() == DEVICE | {
        "output_tokens", "cpu", "memory", "disk", "temperature_cpu-thermal_0_b088cf", "temperature_it_s_24ceef",
    }  # fmt: skip
    assert found["ready"]["platform"] == "binary_sensor"
    assert found["update"]["platform"] == "update"
    for each in found.values():
        assert each["state_topic"] in (
            TOPICS.health, TOPICS.reported, TOPICS.info, TOPICS.telemetry_llm, TOPICS.telemetry_system
        )  # fmt: skip
        assert ("expire_after" in each) == ("telemetry" in each["state_topic"])
        assert each.get("expire_after", 30) == 30


def test_document_names_the_device_and_follows_its_status() -> None:
    made = discovery("box.7", TOPICS, {}, prefix="ha/one", version="1.2.3", gone={})
    assert made.topic == "ha/one/device/box_7_" + made.topic.split("_")[-1]
    document = json.loads(made.payload)
    assert document["device"]["name"] == "box.7"
    assert document["device"]["sw_version"] == "1.2.3"
    assert document["availability_topic"] == TOPICS.status
    for online in (True, False):
        status = encode(Status(online, "b"))
        assert fill(document["availability_template"], status) == ("online" if online else "offline")


def test_absent_sensors_are_not_announced_and_without_samples_none_that_read_them() -> None:
    assert announced(SystemSample(1.0)).keys() == DEVICE | {"output_tokens"}
    assert announced(FULL, interval=0).keys() == DEVICE


def test_what_is_gone_is_announced_by_its_platform_alone() -> None:
    found = announced(SystemSample(1.0), temperature_old="sensor", ready="binary_sensor")
    assert found["temperature_old"] == {"platform": "sensor"}
    assert found["ready"].keys() != {"platform"}


def test_names_that_look_alike_stay_distinct_and_quotes_stay_inside() -> None:
    found = announced(SystemSample(1.0, temperatures={"a.b": 1.0, "a b": 2.0, "it's": 3.0, "C:\\x\n": 4.0}))
    temperatures = {key: each for key, each in found.items() if key.startswith("temperature")}
    assert len(temperatures) == 4
    (quoted,) = [each for key, each in temperatures.items() if "it_s" in key]
    assert quoted["value_template"] == "{{ value_json.temperatures['it\\'s'] }}"
    sample = msgspec.json.encode({"temperatures": {"a.b": 1.0, "a b": 2.0, "it's": 3.0, "C:\\x\n": 4.0}})
    assert sorted(float(fill(each["value_template"], sample)) for each in temperatures.values()) == [1, 2, 3, 4]


HEALTHS = {
    "ready": (Health(True, [], 3, 2), "ON", {"reasons": [], "warnings": []}),
    "not ready": (
        Health(False, ["no_model"], 0, 0, ["revoked"]), "OFF", {"reasons": ["no_model"], "warnings": ["revoked"]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHS)
def test_ready_is_what_health_says(name: str) -> None:
    health, state, detail = HEALTHS[name]
    found, payload = announced(SystemSample(1.0)), encode(health)
    assert fill(found["ready"]["value_template"], payload) == state
    assert json.loads(fill(found["ready"]["json_attributes_template"], payload)) == detail
    assert fill(found["queue"]["value_template"], payload) == str(health.queue)
    assert fill(found["active"]["value_template"], payload) == str(health.active)


OLD, NEW = BundleState("toy", "1.0.0", "ab" * 32, 1), BundleState("toy", "1.1.0", "cd" * 32, 1)
ADAPTER = BundleState("poet", "2.0.0", "ef" * 32, 1)
NOTHING = Reported(None, "IDLE", None, None, None, None)
UPDATES = {
    "nothing": (NOTHING, ("none", "none", False, None)),
    "active": (Reported("r", "IDLE", None, OLD, None, None), ("toy@1.0.0", "toy@1.0.0", False, None)),
    "first one wanted": (
        Reported("r", "RESOLVE", None, None, None, None, desired=BundleReference("toy", "1.0.0")),
        ("none", "toy@1.0.0", True, None),
    ),
    "arriving": (
        Reported("r", "FETCH", Progress(1, 3), OLD, None, None, desired=BundleReference("toy", "1.1.0")),
        ("toy@1.0.0", "toy@1.1.0", True, 33),
    ),
    "of unknown size": (
        Reported("r", "FETCH", Progress(0, 0), OLD, None, None, desired=BundleReference("toy", "1.1.0")),
        ("toy@1.0.0", "toy@1.1.0", True, None),
    ),
    "refused": (
        Reported("r", "IDLE", None, OLD, None, ReportedError("revoked", 'it "was"'),
                 desired=BundleReference("toy", "1.1.0")),
        ("toy@1.0.0", "toy@1.1.0", False, None),
    ),
    "there": (
        Reported("r", "IDLE", None, NEW, OLD, None, desired=BundleReference("toy", "1.1.0")),
        ("toy@1.1.0", "toy@1.1.0", False, None),
    ),
    "adapter there": (
        Reported("r", "IDLE", None, OLD, None, None, adapters=[ADAPTER], desired=BundleReference("poet", "2.0.0")),
        ("toy@1.0.0", "toy@1.0.0", False, None),
    ),
    "adapter wanted": (
        Reported("r", "FETCH", None, OLD, None, None, adapters=[ADAPTER], desired=BundleReference("poet", "2.1.0")),
        ("toy@1.0.0", "poet@2.1.0", True, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UPDATES)
def test_update_compares_what_is_installed_with_what_is_wanted(name: str) -> None:
    reported, (installed, latest, in_progress, percentage) = UPDATES[name]
    found, payload = announced(SystemSample(1.0)), encode(reported)
    assert check_update(fill(found["update"]["value_template"], payload)) == {
        "installed_version": installed, "latest_version": latest, "in_progress": in_progress,
        "update_percentage": percentage,
    }  # fmt: skip
    assert fill(found["bundle"]["value_template"], payload) == installed
    detail = json.loads(fill(found["bundle"]["json_attributes_template"], payload))
    assert detail == ({} if reported.active is None else msgspec.to_builtins(reported.active))
    error = reported.error
    assert fill(found["error"]["value_template"], payload) == ("none" if error is None else error.reason)
    assert json.loads(fill(found["error"]["json_attributes_template"], payload)) == (
        {} if error is None else msgspec.to_builtins(error)
    )


def test_agent_version_is_the_one_of_info() -> None:
    found = announced(SystemSample(1.0))["version"]
    assert fill(found["value_template"], b'{"versions": {"agent": "1.2.3"}}') == "1.2.3"
    assert fill(found["value_template"], b'{"versions": {}}') == "unknown"
