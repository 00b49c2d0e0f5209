"""What Home Assistant wants to know to show this device: one retained document (MQTT device discovery). Pure.

Its entities read the topics that are published anyway; only what the machine really has is announced. Home Assistant
reads such documents since 2024.11; the keys are those of 2026.11, written out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, Struct

from agent.telemetry.samples import SystemSample
from contract.mqtt.topics import Topics

Components = Mapping[str, dict[str, Any]]

READY = "{{ 'ON' if value_json.ready else 'OFF' }}"
REASONS = "{{ {'reasons': value_json.reasons, 'warnings': value_json.warnings | default([])} | tojson }}"
BUNDLE = "{% set b = value_json.active %}{{ b.name ~ '@' ~ b.version if b else 'none' }}"
BUNDLE_DETAIL = "{{ (value_json.active or {}) | tojson }}"
ERROR = "{{ value_json.error.reason if value_json.error else 'none' }}"
ERROR_DETAIL = "{{ (value_json.error or {}) | tojson }}"
VERSION = "{{ value_json.versions.agent | default('unknown') }}"

UPDATE = (
    "{% set a = value_json.active %}{% set d = value_json.desired | default(none) %}{% set p = value_json.progress %}"
    "{% set now = a.name ~ '@' ~ a.version if a else 'none' %}"
    # An adapter that is loaded beside the active bundle is installed, too.
    "{% set held = d and (value_json.adapters | default([]) | selectattr('name', 'equalto', d.name)"
    " | selectattr('version', 'equalto', d.version) | list) %}"
    "{% set next = d.name ~ '@' ~ d.version if d and not held else now %}"
    "{{ {'installed_version': now, 'latest_version': next, 'in_progress': value_json.phase != 'IDLE',"
    " 'update_percentage': (100 * p.done / p.total) | int if p and p.total else none} | tojson }}"
)


class Discovery(Struct, frozen=True):
    """A document for ``topic``; ``platforms`` of what it announces, by component."""

    topic: str
    payload: bytes
    platforms: dict[str, str]


def discovery_topic(device: str, prefix: str) -> str:
    return f"{prefix}/device/{_safe(device)}/config"


def discovery(
    device: str, topics: Topics, components: Components, *, prefix: str, version: str, gone: Mapping[str, str]
) -> Discovery:
    """The document with ``components``; those that are ``gone`` (component to platform) are removed by it."""
    node = _safe(device)
    document = {
        "device": {"identifiers": [f"edge_{node}"], "name": device, "model": "Edge Bundle", "sw_version": version},
        "origin": {"name": "edge-agent", "sw_version": version},
        "availability_topic": topics.status,
        "availability_template": "{{ 'online' if value_json.online else 'offline' }}",
        "components": {
            **{
                key: {
                    **each,
                    "unique_id": f"edge_{node}_{key}",
                    "default_entity_id": f"{each['platform']}.{node}_{key}".lower(),
                }
                for key, each in components.items()
            },
            **{key: {"platform": platform} for key, platform in gone.items() if key not in components},
        },
    }
    platforms = {key: str(each["platform"]) for key, each in components.items()}
    return Discovery(discovery_topic(device, prefix), json.dumps(document).encode(), platforms)


def components(topics: Topics, sample: SystemSample, *, interval: float) -> dict[str, dict[str, Any]]:
    """Everything that this device has; a sensor that misses three samples is unavailable. ``interval`` 0: no samples
    are published, and nothing reads them.
    """
    return {**_device(topics), **(_samples(topics, sample, max(1, round(3 * interval))) if interval else {})}


def _device(topics: Topics) -> dict[str, dict[str, Any]]:
    reported = topics.reported
    return {
        "ready": {
            "platform": "binary_sensor", "name": "Ready", "device_class": "running",
            "state_topic": topics.health, "value_template": READY,
            "json_attributes_topic": topics.health, "json_attributes_template": REASONS,
        },
        "bundle": {
            "platform": "sensor", "name": "Active bundle", "icon": "mdi:package-variant-closed",
            "state_topic": reported, "value_template": BUNDLE,
            "json_attributes_topic": reported, "json_attributes_template": BUNDLE_DETAIL,
        },
        "update": {
            "platform": "update", "name": "Bundle", "title": "Bundle", "state_topic": reported,
            "value_template": UPDATE,
        },
        "error": {
            "platform": "sensor", "name": "Last error", "entity_category": "diagnostic", "icon": "mdi:alert-circle",
            "state_topic": reported, "value_template": ERROR,
            "json_attributes_topic": reported, "json_attributes_template": ERROR_DETAIL,
        },
        "version": {
            "platform": "sensor", "name": "Agent version", "entity_category": "diagnostic", "icon": "mdi:tag",
            "state_topic": topics.info, "value_template": VERSION,
        },
        "queue": _number("Requests waiting", topics.health, "{{ value_json.queue }}"),
        "active": _number("Requests active", topics.health, "{{ value_json.active }}"),
    }  # fmt: skip


def _samples(topics: Topics, sample: SystemSample, expire: int) -> dict[str, dict[str, Any]]:
    system = topics.telemetry_system
    tokens = "{{ value_json['gen_ai.usage.output_tokens'] }}"
    found = {
        "output_tokens": _number(
            "Tokens generated", topics.telemetry_llm, tokens, unit="tokens", state_class="total_increasing"
        )
    }
    if sample.cpu is not UNSET:
        found["cpu"] = _number("Processors", system, "{{ value_json.cpu.percent }}", unit="%")
    if sample.memory is not UNSET:
        template = "{{ value_json.memory.available }}"
        found["memory"] = _number("Memory available", system, template, unit="B", device_class="data_size")
    if sample.disk is not UNSET:
        found["disk"] = _number("Disk free", system, "{{ value_json.disk.free }}", unit="B", device_class="data_size")
    for name in sample.temperatures or ():
        template = f"{{{{ value_json.temperatures[{_literal(name)}] }}}}"
        found[f"temperature_{_safe(name)}"] = _number(
            f"Temperature {name}", system, template, unit="°C", device_class="temperature"
        )
    for key, each in found.items():
        each["expire_after"] = expire
        if key != "output_tokens":
            each["entity_category"] = "diagnostic"
    return found


def _number(
    name: str,
    topic: str,
    template: str,
    *,
    unit: str | None = None,
    device_class: str | None = None,
    state_class: str = "measurement",
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "platform": "sensor",
        "name": name,
        "state_topic": topic,
        "value_template": template,
        "state_class": state_class,
    }
    if unit is not None:
        found["unit_of_measurement"] = unit
    if device_class is not None:
        found["device_class"] = device_class
    return found


def _safe(name: str) -> str:
    """Home Assistant takes letters, digits, ``_`` and ``-``; what had others stays distinct by a digest."""
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return name
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _literal(name: str) -> str:
    """A string in a template; names come from drivers and may hold anything."""
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
