"""What Home Assistant wants to know to show our sensors: one retained document for each (MQTT discovery). Pure.

The sensors read the topics that are published anyway. Only what the machine really has is announced.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from msgspec import UNSET, Struct

from agent.telemetry.samples import SystemSample
from contract.mqtt.topics import Topics


class _Sensor(Struct, frozen=True):
    name: str
    topic: str
    template: str
    unit: str | None = None
    device_class: str | None = None
    state_class: str = "measurement"


def announcements(
    device: str, topics: Topics, sample: SystemSample, *, prefix: str, version: str, interval: float
) -> dict[str, bytes]:
    """Topic and document of every sensor that ``sample`` shows; a sensor that misses three samples is unavailable."""
    node = _safe(device)
    found = {}
    for key, sensor in _sensors(topics, sample).items():
        document: dict[str, Any] = {
            "name": sensor.name,
            "unique_id": f"edge_{node}_{key}",
            "object_id": f"{node}_{key}",
            "state_topic": sensor.topic,
            "value_template": sensor.template,
            "state_class": sensor.state_class,
            "availability_topic": topics.status,
            "availability_template": "{{ 'online' if value_json.online else 'offline' }}",
            "device": {"identifiers": [f"edge_{node}"], "name": device, "model": "Edge Bundle", "sw_version": version},
            "origin": {"name": "edge-agent", "sw_version": version},
        }
        if sensor.topic != topics.health:
            document["expire_after"] = max(1, round(3 * interval))
        if sensor.unit is not None:
            document["unit_of_measurement"] = sensor.unit
        if sensor.device_class is not None:
            document["device_class"] = sensor.device_class
        found[f"{prefix}/sensor/{node}/{key}/config"] = json.dumps(document).encode()
    return found


def _sensors(topics: Topics, sample: SystemSample) -> dict[str, _Sensor]:
    system, llm, health = topics.telemetry_system, topics.telemetry_llm, topics.health
    tokens = "{{ value_json['gen_ai.usage.output_tokens'] }}"
    found = {
        "queue": _Sensor("Requests waiting", health, "{{ value_json.queue }}"),
        "active": _Sensor("Requests active", health, "{{ value_json.active }}"),
        "output_tokens": _Sensor("Tokens generated", llm, tokens, "tokens", None, "total_increasing"),
    }
    if sample.cpu is not UNSET:
        found["cpu"] = _Sensor("Processors", system, "{{ value_json.cpu.percent }}", "%")
    if sample.memory is not UNSET:
        template = "{{ value_json.memory.available }}"
        found["memory"] = _Sensor("Memory available", system, template, "B", "data_size")
    if sample.disk is not UNSET:
        found["disk"] = _Sensor("Disk free", system, "{{ value_json.disk.free }}", "B", "data_size")
    for name in sample.temperatures or ():
        template = f"{{{{ value_json.temperatures[{_literal(name)}] }}}}"
        found[f"temperature_{_safe(name)}"] = _Sensor(f"Temperature {name}", system, template, "°C", "temperature")
    return found


def _safe(name: str) -> str:
    """Home Assistant takes letters, digits, ``_`` and ``-``; what had others stays distinct by a digest."""
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return name
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _literal(name: str) -> str:
    """A string in a template; names come from drivers and may hold anything."""
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
