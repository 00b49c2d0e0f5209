"""What Home Assistant 2026.11 takes in a device discovery document, as its documentation and its own schemas have it
(``homeassistant/components/mqtt``: schemas.py, sensor.py, binary_sensor.py, update.py), and how it fills templates.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jinja2.sandbox

ENTITY = {
    "platform", "unique_id", "name", "state_topic", "value_template", "entity_category", "icon", "default_entity_id",
    "json_attributes_topic", "json_attributes_template", "enabled_by_default", "visible_by_default", "entity_picture",
    "qos", "encoding", "availability_topic", "availability_template", "payload_available", "payload_not_available",
    "availability", "availability_mode",
}  # fmt: skip
PLATFORMS = {
    "sensor": ENTITY | {
        "device_class", "expire_after", "force_update", "last_reset_value_template", "options",
        "suggested_display_precision", "state_class", "unit_of_measurement",
    },
    "binary_sensor": ENTITY | {
        "device_class", "expire_after", "force_update", "off_delay", "payload_on", "payload_off",
    },
    "update": ENTITY | {
        "device_class", "display_precision", "latest_version_topic", "latest_version_template", "command_topic",
        "payload_install", "release_summary", "release_url", "retain", "title",
    },
}  # fmt: skip
REMOVED = {"object_id", "schema", "via_hub", "discovery_id"}
"""Once there, deprecated since (``object_id`` ended with 2026.4)."""

DEVICE = {
    "identifiers", "connections", "manufacturer", "model", "model_id", "name", "hw_version", "serial_number",
    "sw_version", "via_device", "suggested_area", "configuration_url",
}  # fmt: skip
SHARED = {
    "availability", "availability_mode", "availability_template", "availability_topic", "command_topic", "encoding",
    "message_expiry_interval", "payload_available", "payload_not_available", "qos", "state_topic",
}  # fmt: skip
UNITS = {"temperature": {"°C", "°F", "K"}, "data_size": {"bit", "kbit", "Mbit", "B", "kB", "MB", "GB", "KiB", "MiB"}}
"""Units that go with a device class of sensors."""

BINARY_CLASSES = {"running", "problem", "connectivity", "power", "update"}
STATE_CLASSES = {"measurement", "total", "total_increasing"}


def check_document(topic: str, payload: bytes) -> dict[str, dict[str, Any]]:
    """The components of a device discovery document that Home Assistant would take without a word."""
    assert re.fullmatch(r"[\w./-]+/device/[A-Za-z0-9_-]+/config", topic)
    document = json.loads(payload)
    assert document.keys() <= {"device", "origin", "components"} | SHARED
    assert document["device"].keys() <= DEVICE
    assert document["device"]["identifiers"]
    assert document["origin"].keys() <= {"name", "sw_version", "support_url"}
    assert document["origin"]["name"]
    found: dict[str, dict[str, Any]] = document["components"]
    assert found
    for key, each in found.items():
        assert re.fullmatch(r"[A-Za-z0-9_-]+", key)
        if each.keys() != {"platform"}:
            _check_component(each)
    ids = [each["unique_id"] for each in found.values() if "unique_id" in each]
    assert len(set(ids)) == len(ids)
    return found


def _check_component(each: dict[str, Any]) -> None:
    assert not each.keys() & REMOVED
    assert each.keys() <= PLATFORMS[each["platform"]]
    assert {"unique_id", "name", "state_topic"} <= each.keys()
    domain, _, name = each["default_entity_id"].partition(".")
    assert domain == each["platform"]
    assert re.fullmatch(r"[a-z0-9_-]+", name)
    assert each.get("entity_category", "diagnostic") == "diagnostic", "sensors cannot be of another one"
    assert ("json_attributes_template" in each) <= ("json_attributes_topic" in each)
    if each["platform"] == "binary_sensor":
        assert each.get("device_class", "running") in BINARY_CLASSES
    if each["platform"] == "sensor":
        assert ("unit_of_measurement" in each) <= ("state_class" in each), "a text has no unit"
        assert each.get("state_class", "measurement") in STATE_CLASSES
        if "device_class" in each:
            assert each["unit_of_measurement"] in UNITS[each["device_class"]]


def fill(template: str, payload: bytes) -> str:
    """As Home Assistant does: Jinja2 in a sandbox; undefined names are errors here."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(value_json=json.loads(payload))


def check_update(text: str) -> dict[str, Any]:
    """The JSON that an update entity takes: every field of the type that it demands."""
    found: dict[str, Any] = json.loads(text)
    assert found.keys() <= {
        "installed_version", "latest_version", "title", "release_summary", "release_url", "entity_picture",
        "in_progress", "update_percentage",
    }  # fmt: skip
    assert isinstance(found["installed_version"], str)
    assert isinstance(found["latest_version"], str)
    assert isinstance(found["in_progress"], bool)
    assert found["update_percentage"] is None or 0 <= found["update_percentage"] <= 100
    return found
