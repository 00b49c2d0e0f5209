"""``docs/asyncapi.yaml`` from the message types: ``python -m contract.mqtt.asyncapi`` checks it, ``--write`` makes it.

The document is written as JSON, which every YAML reader reads: no YAML library is needed to make or check it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from contract.mqtt.answers import ControlRefused, ErrorFrame, Frame, LastFrame
from contract.mqtt.asyncapi_rules import faults, references
from contract.mqtt.desired import Desired
from contract.mqtt.device import Event, Health, Info, Status
from contract.mqtt.reports import Reported
from contract.mqtt.requests import ControlRequest, GenerateRequest
from contract.mqtt.topics import DEFAULT_ROOT

FILE = Path(__file__).resolve().parent.parent.parent / "docs" / "asyncapi.yaml"

MESSAGES = (
    GenerateRequest, ControlRequest, Desired, Frame, LastFrame, ErrorFrame, ControlRefused, Reported,
    Status, Info, Health, Event,
)  # fmt: skip

# name, topic below the root, messages, whether the device sends it
CHANNELS: tuple[tuple[str, str, tuple[type, ...], bool], ...] = (
    ("generate", "d/{device}/generate/{client}", (GenerateRequest,), False),
    ("groupGenerate", "g/{group}/generate/{client}", (GenerateRequest,), False),
    ("control", "d/{device}/control/{client}", (ControlRequest,), False),
    ("desired", "d/{device}/desired", (Desired,), False),
    ("reply", "c/{client}/r/{device}/{id}", (Frame, LastFrame, ErrorFrame, ControlRefused), True),
    ("reported", "d/{device}/reported", (Reported,), True),
    ("status", "d/{device}/status", (Status,), True),
    ("info", "d/{device}/info", (Info,), True),
    ("health", "d/{device}/health", (Health,), True),
    ("event", "d/{device}/event/{type}", (Event,), True),
)
RETAINED = {"desired", "reported", "status", "info", "health"}

# The agent's own types, which the contract does not know: name, topic, message.
TELEMETRY = (
    ("telemetrySystem", "d/{device}/telemetry/system", "SystemSample"),
    ("telemetryLlm", "d/{device}/telemetry/llm", "LlmSample"),
)
# Bytes, which have no type.
PICTURE = ("picture", "d/{device}/picture/{client}/{digest}/{part}", "PicturePart")
PICTURE_TEXT = "A part of a PNG or JPEG as it is, at most 1 MiB; docs/MQTT.md has the levels of its topic."
SUMMARIES = {"reply": "Pieces come at QoS 0, the last frame or error at QoS 1; the last frame repeats everything."}


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 description, from the device's point of view."""
    schemas, components = msgspec.json.schema_components(MESSAGES, ref_template="#/components/schemas/{name}")
    names = [schema["$ref"].rpartition("/")[2] for schema in schemas]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Edge Bundle over MQTT",
            "version": "1.0.0",
            "description": "Prompts in, answers out. docs/MQTT.md explains the rules.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            **{name: _channel(path, [type_.__name__ for type_ in types]) for name, path, types, _ in CHANNELS},
            **{name: _channel(path, [message]) for name, path, message in (PICTURE, *TELEMETRY)},
        },
        "operations": {
            **{name: _operation(name, sends) for name, _, _, sends in CHANNELS},
            PICTURE[0]: _operation(PICTURE[0], False),
            **{name: _operation(name, True, qos=0) for name, _, _ in TELEMETRY},
        },
        "components": {
            "messages": {
                **{name: {"payload": {"$ref": f"#/components/schemas/{name}"}} for name in names},
                PICTURE[2]: {
                    "contentType": "application/octet-stream",
                    "payload": {"type": "string", "description": PICTURE_TEXT},
                },
                **{
                    name: {"payload": {"type": "object", "description": "docs/TELEMETRY.md has every field."}}
                    for _, _, name in TELEMETRY
                },
            },
            "schemas": _without_discriminators(_with_nulls(components)),
        },
    }


def _with_nulls(schemas: dict[str, Any]) -> dict[str, Any]:
    """``schemas``, where null stands for a member that a message to the device may leave out."""
    left, taken = [ControlRequest.__name__, GenerateRequest.__name__], set[str]()
    while left:
        name = left.pop()
        if name not in taken:
            taken.add(name)
            left += [target.rpartition("/")[2] for _, target in references(schemas[name])]
    return {name: _nullable(schema) if name in taken else schema for name, schema in schemas.items()}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    needed = schema.get("required", [])
    members = {
        name: member if name in needed else _or_null(member) for name, member in schema.get("properties", {}).items()
    }
    return {**schema, "properties": members}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    if not schema or null in schema.get("anyOf", []):
        return schema
    own = {key: found for key, found in schema.items() if key != "default"}
    kinds = own.get("anyOf", [own])
    default = {"default": schema["default"]} if "default" in schema else {}
    return {"anyOf": [*kinds, null], **default}


def _without_discriminators(schema: Any) -> Any:
    """``schema`` in AsyncAPI's terms: its discriminator is another than OpenAPI's, and the kinds of a part, having
    constants for their ``type``, are told apart without.
    """
    if isinstance(schema, dict):
        return {key: _without_discriminators(found) for key, found in schema.items() if key != "discriminator"}
    return [_without_discriminators(found) for found in schema] if isinstance(schema, list) else schema


def _channel(path: str, messages: list[str]) -> dict[str, Any]:
    parameters = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    return {
        "address": f"{DEFAULT_ROOT}/{path}",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "parameters": {parameter: {"description": "1 to 64 of A-Z a-z 0-9 _ . -"} for parameter in parameters},
    }


def _operation(name: str, sends: bool, qos: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = {
        "action": "send" if sends else "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "bindings": {"mqtt": {"qos": qos, "retain": name in RETAINED}},
    }
    return {**found, "summary": SUMMARIES[name]} if name in SUMMARIES else found


def render() -> str:
    """The text of the file."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Check the file, and that it is AsyncAPI; or write it."""
    parser = argparse.ArgumentParser(description="Check docs/asyncapi.yaml against the message types.")
    parser.add_argument("--write", action="store_true", help="write docs/asyncapi.yaml instead of checking it")
    if parser.parse_args().write:
        FILE.write_text(render(), encoding="utf-8")
    elif wrong := faults(document()):
        print("\n".join(wrong))
        return 1
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != render():
        print(f"{FILE.name} differs from the message types; run python -m contract.mqtt.asyncapi --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
