"""The published description of the API is that of the types, and AsyncAPI 3.0."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contract.mqtt import asyncapi
from contract.mqtt.asyncapi_rules import faults


def test_published_file_is_up_to_date() -> None:
    assert asyncapi.FILE.read_text(encoding="utf-8") == asyncapi.render()


def test_published_file_keeps_the_rules_of_asyncapi() -> None:
    document = json.loads(asyncapi.FILE.read_text(encoding="utf-8"))
    assert faults(document) == []
    assert document["channels"]["reply"]["address"] == "edge/v1/c/{client}/r/{device}/{id}"
    assert set(document["components"]["messages"]) >= {"GenerateRequest", "LastFrame", "ErrorFrame", "LlmSample"}


# Where, what is put there (None: it is taken away), and what is said of it.
MISTAKES: list[tuple[str, Any, str]] = [
    ("asyncapi", "2.6.0", "must be 3.0.0"),
    ("info.title", "", "info.title is missing"),
    ("servrs", {}, "the document may not have servrs"),
    ("channels.reply.address", "edge/v1/c/{client}", "channels.reply.parameters are not those"),
    ("channels.reply.address", "edge/v1/#", "channels.reply.address is no topic"),
    ("channels.reply.parameters.device", None, "channels.reply.parameters are not those"),
    ("channels.reply.parameters.device.schema", {}, "parameters.device may not have schema"),
    ("channels.reply.messages", {}, "channels.reply has no messages"),
    ("channels.reply.messages.Frame", {"$ref": "#/components/messages/Nobody"}, "leads nowhere"),
    ("channels.reply.messages.Frame", {"$ref": "#/components/schemas/Frame"}, "messages.Frame is no message"),
    ("channels.reply.subscribe", {}, "channels.reply may not have subscribe"),
    ("operations.reply.action", "publish", "operations.reply.action"),
    ("operations.reply.channel", {"$ref": "#/channels/nothing"}, "leads nowhere"),
    ("operations.reply.bindings.mqtt.qos", 3, "qos must be"),
    ("operations.reply.bindings.mqtt.retain", "no", "retain must be"),
    ("operations.reply.bindings.mqtt.will", True, "may not have will"),
    ("components.messages.Frame.payloads", {}, "components.messages.Frame may not have payloads"),
    ("components.messages.Stray", {"payload": True}, "components.messages.Stray is used nowhere"),
    ("components.schemas.Stray", {}, "components.schemas.Stray is used nowhere"),
    ("components.schemas.Frame.type", "objekt", "components.schemas.Frame.type"),
    ("components.schemas.Frame.required", ["nothing"], "requires nothing"),
    ("components.schemas.Frame.properties.s", 5, "components.schemas.Frame.s is no schema"),
    ("components.schemas.Frame.properties.s.maximum", "9", "maximum must be a number"),
    ("components.schemas.Frame.properties.d.pattern", "(", "components.schemas.Frame.d.pattern"),
    ("components.schemas.Frame.properties.d.enum", [], "enum must be"),
    ("components.schemas.Frame.properties.d.nullable", True, "d may not have nullable"),
    ("components.schemas.Frame.properties.d", {"anyOf": [{"items": {"type": "text"}}]}, "anyOf[0].items.type"),
]


@pytest.mark.parametrize(("place", "value", "said"), MISTAKES, ids=[f"{one[0]}={one[1]}" for one in MISTAKES])
def test_a_mistake_is_found(place: str, value: Any, said: str) -> None:
    document: dict[str, Any] = json.loads(asyncapi.render())
    *way, last = place.split(".")
    node = document
    for part in way:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    assert any(said in fault for fault in faults(document)), faults(document)
