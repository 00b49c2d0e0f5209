"""The published description of the API is that of the types."""

from __future__ import annotations

import json
from typing import Any

from contract.mqtt import asyncapi


def test_published_file_is_up_to_date() -> None:
    assert asyncapi.FILE.read_text(encoding="utf-8") == asyncapi.render()


def test_every_reference_leads_somewhere() -> None:
    document = json.loads(asyncapi.render())

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = document
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert document["channels"]["reply"]["address"] == "edge/v1/c/{client}/r/{device}/{id}"
    assert set(document["components"]["messages"]) >= {"GenerateRequest", "LastFrame", "ErrorFrame"}
