"""What makes a document AsyncAPI 3.0, as far as ours goes: fixed fields, references, addresses, schemas. Pure.

Stricter than the specification where that finds mistakes: keywords that we do not use are faults, too, and so is a
message or schema that nothing leads to. Rules: AsyncAPI 3.0.0, "Schema"; MQTT bindings 0.2.0; JSON Schema draft 7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

ROOT = {"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"}
INFO = {"title", "version", "description", "termsOfService", "contact", "license", "tags", "externalDocs"}
CHANNEL = {
    "address", "messages", "title", "summary", "description", "servers", "parameters", "tags", "externalDocs",
    "bindings",
}  # fmt: skip
PARAMETER = {"enum", "default", "description", "examples", "location"}
OPERATION = {
    "action", "channel", "title", "summary", "description", "security", "tags", "externalDocs", "bindings", "traits",
    "messages", "reply",
}  # fmt: skip
MESSAGE = {
    "headers", "payload", "correlationId", "contentType", "name", "title", "summary", "description", "tags",
    "externalDocs", "bindings", "examples", "traits",
}  # fmt: skip
BINDING = {"qos", "retain", "messageExpiryInterval", "bindingVersion"}
SCHEMA = {
    "title", "description", "type", "properties", "required", "additionalProperties", "items", "enum", "anyOf",
    "default", "pattern", "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "minimum", "maximum",
    "exclusiveMinimum", "propertyNames", "$ref",
}  # fmt: skip
TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}
NUMBERS = {
    "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "minimum", "maximum", "exclusiveMinimum",
}  # fmt: skip


def faults(document: dict[str, Any]) -> list[str]:
    """Everything that is wrong, each with its place; empty for a good document."""
    found = [*_keys(document, ROOT, "the document"), *_keys(document.get("info", {}), INFO, "info")]
    if document.get("asyncapi") != "3.0.0":
        found.append("asyncapi must be 3.0.0")
    found += [f"info.{name} is missing" for name in ("title", "version") if not document.get("info", {}).get(name)]
    leading = list(references(document))
    found += [f"{pointer}: {target} leads nowhere" for pointer, target in leading if _find(document, target) is None]
    components = document.get("components", {})
    reached = {target for _, target in leading}
    for kind in ("messages", "schemas"):
        for name in components.get(kind, {}):
            if f"#/components/{kind}/{name}" not in reached:
                found.append(f"components.{kind}.{name} is used nowhere")
    for name, channel in document.get("channels", {}).items():
        found += _channel(f"channels.{name}", channel)
    for name, operation in document.get("operations", {}).items():
        found += _operation(f"operations.{name}", operation)
    for name, message in components.get("messages", {}).items():
        found += _keys(message, MESSAGE, f"components.messages.{name}")
    for name, schema in components.get("schemas", {}).items():
        found += _schema(f"components.schemas.{name}", schema)
    return found


def _channel(pointer: str, channel: dict[str, Any]) -> Iterator[str]:
    yield from _keys(channel, CHANNEL, pointer)
    named = set(re.findall(r"\{([^{}/]+)\}", channel.get("address", "")))
    if not channel.get("address") or any(sign in channel["address"] for sign in "#+"):
        yield f"{pointer}.address is no topic"
    if named != set(channel.get("parameters", {})):
        yield f"{pointer}.parameters are not those of its address"
    for name, parameter in channel.get("parameters", {}).items():
        yield from _keys(parameter, PARAMETER, f"{pointer}.parameters.{name}")
    if not channel.get("messages"):
        yield f"{pointer} has no messages"
    for name, message in channel.get("messages", {}).items():
        if not message.get("$ref", "").startswith("#/components/messages/"):
            yield f"{pointer}.messages.{name} is no message"


def _operation(pointer: str, operation: dict[str, Any]) -> Iterator[str]:
    yield from _keys(operation, OPERATION, pointer)
    if operation.get("action") not in ("send", "receive"):
        yield f"{pointer}.action must be send or receive"
    if not operation.get("channel", {}).get("$ref", "").startswith("#/channels/"):
        yield f"{pointer}.channel is no channel"
    binding = operation.get("bindings", {}).get("mqtt", {})
    yield from _keys(binding, BINDING, f"{pointer}.bindings.mqtt")
    if binding.get("qos") not in (0, 1, 2):
        yield f"{pointer}.bindings.mqtt.qos must be 0, 1 or 2"
    if not isinstance(binding.get("retain"), bool):
        yield f"{pointer}.bindings.mqtt.retain must be true or false"


def _schema(pointer: str, schema: Any) -> Iterator[str]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield f"{pointer} is no schema"
        return
    yield from _keys(schema, SCHEMA, pointer)
    yield from _keywords(pointer, schema)
    parts = [(name, schema[name]) for name in ("items", "additionalProperties", "propertyNames") if name in schema]
    parts += schema.get("properties", {}).items()
    parts += [(f"anyOf[{index}]", inner) for index, inner in enumerate(schema.get("anyOf", []))]
    for name, inner in parts:
        yield from _schema(f"{pointer}.{name}", inner)


def _keywords(pointer: str, schema: dict[str, Any]) -> Iterator[str]:
    """What a schema says itself, without those inside it."""
    if schema.get("type", "object") not in TYPES:
        yield f"{pointer}.type {schema['type']!r} is none"
    for name in NUMBERS & schema.keys():
        if isinstance(schema[name], bool) or not isinstance(schema[name], int | float):
            yield f"{pointer}.{name} must be a number"
    for name in set(schema.get("required", [])) - schema.get("properties", {}).keys():
        yield f"{pointer} requires {name}, which it does not have"
    try:
        re.compile(schema.get("pattern", ""))
    except re.error as error:
        yield f"{pointer}.pattern: {error}"
    if "enum" in schema and (not isinstance(schema["enum"], list) or not schema["enum"]):
        yield f"{pointer}.enum must be a list of values"


def _keys(found: dict[str, Any], allowed: set[str], pointer: str) -> Iterator[str]:
    for name in found.keys() - allowed:
        yield f"{pointer} may not have {name}"


def references(node: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """Every reference in ``node``: where it stands, and what it points to."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield pointer, node["$ref"]
        for name, inner in node.items():
            yield from references(inner, f"{pointer}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from references(inner, f"{pointer}[{index}]")


def _find(document: Any, target: str) -> Any:
    if not target.startswith("#/"):
        return None
    for part in target[2:].split("/"):
        document = document.get(part) if isinstance(document, dict) else None
    return document
