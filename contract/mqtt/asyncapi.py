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

from contract.mqtt.messages import (
    ControlRefused,
    ControlRequest,
    Desired,
    ErrorFrame,
    Event,
    Frame,
    GenerateRequest,
    Health,
    Info,
    LastFrame,
    Reported,
    Status,
)
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
        "channels": {name: _channel(name, path, types) for name, path, types, _ in CHANNELS},
        "operations": {name: _operation(name, sends) for name, _, _, sends in CHANNELS},
        "components": {
            "messages": {name: {"payload": {"$ref": f"#/components/schemas/{name}"}} for name in names},
            "schemas": components,
        },
    }


def _channel(name: str, path: str, types: tuple[type, ...]) -> dict[str, Any]:
    parameters = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    found: dict[str, Any] = {
        "address": f"{DEFAULT_ROOT}/{path}",
        "messages": {type_.__name__: {"$ref": f"#/components/messages/{type_.__name__}"} for type_ in types},
        "parameters": {parameter: {"description": "1 to 64 of A-Z a-z 0-9 _ . -"} for parameter in parameters},
    }
    return found


def _operation(name: str, sends: bool) -> dict[str, Any]:
    return {
        "action": "send" if sends else "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "bindings": {"mqtt": {"qos": 1, "retain": name in RETAINED}},
    }


def render() -> str:
    """The text of the file."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Check the file, or write it."""
    parser = argparse.ArgumentParser(description="Check docs/asyncapi.yaml against the message types.")
    parser.add_argument("--write", action="store_true", help="write docs/asyncapi.yaml instead of checking it")
    if parser.parse_args().write:
        FILE.write_text(render(), encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != render():
        print(f"{FILE.name} differs from the message types; run python -m contract.mqtt.asyncapi --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
