"""What ten public clients send (tests/clients/bodies), through the gateway; Open WebUI's whole sequence of calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.gateway.raw import send
from tests.fleet.gateway.stage import Stage

pytestmark = pytest.mark.broker

BODIES = Path(__file__).parents[2] / "clients" / "bodies"


def bodies() -> list[Any]:
    found = []
    for path in sorted(BODIES.glob("*.json")):
        document = json.loads(path.read_text("utf-8"))
        refused = document.get("refused", {})
        for number, body in enumerate(document["bodies"]):
            found.append(pytest.param(body, refused.get(str(number)), id=f"{path.stem}-{number}"))
    return found


def events(text: str) -> list[Any]:
    """The documents of a stream, which ends as OpenAI's do."""
    lines = [line for line in text.split("\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize(("body", "refused"), bodies())
def test_every_body_of_a_public_client_is_answered_or_refused_by_name(
    stage: Stage, body: dict[str, Any], refused: str | None
) -> None:
    asked = {**body, "model": "toy"}
    asked.pop("id", None)
    path = "/v1/completions" if "prompt" in asked else "/v1/chat/completions"
    reply = send(stage.server.port, path, asked)
    if refused is not None:
        assert (reply.status, reply.error["param"]) == (400, refused)
        return
    assert reply.status == 200, reply.body
    if asked.get("stream"):
        chunks = events(reply.body.decode())
        assert {chunk["object"] for chunk in chunks} <= {"chat.completion.chunk", "text_completion"}
        assert any(chunk["choices"] and chunk["choices"][0]["finish_reason"] for chunk in chunks)
    else:
        assert reply.json["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")


def test_what_open_webui_does_one_after_the_other(stage: Stage) -> None:
    """It lists the models, streams a chat with usage, and asks for a title, with its own headers."""
    headers = {"authorization": "Bearer none", "x-openwebui-user-name": "Ann", "x-openwebui-user-role": "user"}
    models = send(stage.server.port, "/v1/models", headers=headers).json
    assert models["object"] == "list"
    assert all({"id", "object", "created", "owned_by"} <= set(each) for each in models["data"])
    document = json.loads((BODIES / "open-webui.json").read_text())
    chat, title = document["bodies"][:2]
    model = next(each["id"] for each in models["data"] if each["id"] == "group:kitchens")
    reply = send(stage.server.port, "/v1/chat/completions", {**chat, "model": model}, headers=headers)
    assert reply.headers["content-type"].startswith("text/event-stream")
    chunks = events(reply.body.decode())
    assert chunks[-1]["usage"]["total_tokens"] > 0
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    whole = send(stage.server.port, "/v1/chat/completions", {**title, "model": model}, headers=headers)
    assert whole.json["choices"][0]["message"]["content"]
