"""The bodies that public clients send, as they were recorded or as the code makes them, through all of serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.engine.interface import Generation
from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.worker.double import FakeWorkers
from tests.e2e.raw_client import Answer, RawClient

pytestmark = pytest.mark.broker

BODIES = Path(__file__).parents[2] / "clients" / "bodies"
CLIENTS = {path.stem: json.loads(path.read_bytes()) for path in sorted(BODIES.glob("*.json"))}


def test_ten_clients_are_written_down_with_their_sources() -> None:
    assert len(CLIENTS) == 10
    for found in CLIENTS.values():
        assert {"client", "source", "bodies"} <= found.keys()
        assert found["bodies"]


def send(client: RawClient, request: str, body: dict[str, Any]) -> dict[str, Any]:
    """``body`` to the byte as it would go over HTTP; the id travels in Correlation Data."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.CorrelationData = request.encode()
    client.answers[request] = Answer(0.0)
    generate = f"edge/v1/d/{client.device}/generate/{client.name}"
    client._client.publish(generate, json.dumps(body), qos=1, properties=properties).wait_for_publish(120)
    return client.wait_answer(request).lasts[0]


def given(device: Device) -> Generation:
    """What the worker was given last."""
    return device.workers.current.admitted[-1]


ASKED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "n": "n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "logprobs": "logprobs",
    "top_logprobs": "top_logprobs",
    "prompt": "prompt",
    "reasoning_effort": "reasoning_effort",
}
"""What a body says, and where the engine finds it."""


@pytest.mark.parametrize("name", CLIENTS)
def test_every_body_is_answered_rightly(make_device: MakeDevice, client: RawClient, name: str) -> None:
    device = make_device(workers=FakeWorkers(slots=4)).start(sealed())
    refused = CLIENTS[name].get("refused", {})
    for number, body in enumerate(CLIENTS[name]["bodies"]):
        last = send(client, f"b{number}", body)
        if str(number) in refused:
            assert (last["error"]["code"], last["error"]["field"]) == (400, refused[str(number)])
            continue
        calls = bool(body.get("tools")) and body.get("tool_choice") != "none"
        assert last.get("tool_calls") if calls else last.get("text"), last
        assert (last["finish_reason"] == "tool_calls") == calls
        assert len(last.get("choices", [last])) == (body.get("n") or 1)
        assert bool(client.answers[f"b{number}"].frames) == (body.get("stream") is not False)
        made = given(device)
        for theirs, ours in ASKED.items():
            if body.get(theirs) is not None:
                assert getattr(made, ours) == body[theirs], theirs
        stop = body.get("stop") or []
        assert made.stops == ((stop,) if isinstance(stop, str) else tuple(stop))
        form = body.get("response_format") or {"type": "text"}
        assert (made.grammar is not None) == (form["type"] != "text")
        assert (made.tools is not None) == bool(body.get("tools"))
        if "messages" in body:
            assert made.messages is not None
            roles = [turn["role"] for turn in made.messages]
            assert roles == [message["role"] for message in body["messages"]]


def test_an_answer_that_goes_back_into_the_history_is_read_as_what_was_said(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device().start(sealed())
    bodies = CLIENTS["openai-python"]["bodies"]
    dumped = next(body for body in bodies if len(body["messages"]) > 2)
    assert None in dumped["messages"][2].values(), "as the package dumps a message"
    send(client, "again", dumped)
    messages = given(device).messages
    assert messages is not None
    assert messages[2] == {"role": "assistant", "content": dumped["messages"][2]["content"]}
