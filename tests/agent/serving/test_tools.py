"""Functions over MQTT: a real model in a real worker calls them, piece by piece, and reads what they returned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.serving.test_real_model import ask, last_of, serve, user
from tests.broker import Broker
from tests.chat_templates import TEMPLATES
from tests.e2e.raw_client import Answer, RawClient

pytestmark = pytest.mark.broker

READ = {
    "type": "function",
    "function": {
        "name": "read",
        "parameters": {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop"}}


@pytest.fixture(scope="module")
def calling(shared_broker: Broker, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawClient]:
    directory = tmp_path_factory.mktemp("calling")
    bundle = shutil.copytree(tiny_bundle, directory / "bundle")
    (bundle / "chat_template.jinja").unlink(missing_ok=True)
    (bundle / "chat_template.jinja").write_text(TEMPLATES["qwen2.5"])
    device: Device = serve(shared_broker, directory, bundle, "calling", threads=1, max_bytes=8 << 20)
    client = RawClient(shared_broker.port, "caller", device.config.device)
    yield client
    client.close()
    device.stop()


def joined(answer: Answer) -> list[dict[str, Any]]:
    """The calls that the frames' deltas make, as clients of OpenAI's join them."""
    calls: list[dict[str, Any]] = []
    for frame in answer.frames:
        for delta in frame.get("tool_calls", []):
            if delta["index"] == len(calls):
                calls.append({"id": delta["id"], "type": delta["type"], "function": {"name": "", "arguments": ""}})
            for name in ("name", "arguments"):
                calls[delta["index"]]["function"][name] += delta["function"].get(name, "")
    return calls


def test_a_required_call_is_streamed_and_whole_at_the_end(calling: RawClient) -> None:
    answer = calling.wait_answer(
        ask(calling, messages=user("Say hello."), tools=[READ], tool_choice="required", parallel_tool_calls=False)
    )
    [last] = answer.lasts
    assert last["finish_reason"] == "tool_calls"
    [call] = last["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"]["name"] == "read"
    arguments = json.loads(call["function"]["arguments"])
    assert arguments.keys() == {"n"} and 0 <= arguments["n"] <= 99
    assert last["text"] == ""
    assert joined(answer) == [call], "the pieces make the whole"


def test_what_comes_with_the_end_counts(make_device: MakeDevice, client: RawClient) -> None:
    """The double says a call's last words with the event that ends it."""
    make_device(stream_interval_ms=0).start(sealed())
    client.ask("one", "now cellar", tools=[READ], tool_choice="required")
    answer = client.wait_answer("one")
    [last] = answer.lasts
    assert last["reasoning_content"] == "Hm, well."
    function = {"name": "read", "arguments": '{"word": "cellar"}'}
    assert last["tool_calls"] == [{"id": "call_1", "function": function, "type": "function"}]
    assert (last["finish_reason"], last["text"]) == ("tool_calls", "")


def test_the_named_function_is_called(calling: RawClient) -> None:
    choice = {"type": "function", "function": {"name": "stop"}}
    last = last_of(
        calling, messages=user("Hi"), tools=[READ, STOP], tool_choice=choice, parallel_tool_calls=False, stream=False
    )
    assert [call["function"] for call in last["tool_calls"]] == [{"name": "stop", "arguments": "{}"}]
    assert last["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["none", "auto", None])
def test_an_answer_without_calls_is_text(calling: RawClient, choice: str | None) -> None:
    last = last_of(calling, messages=user("Say hello."), tools=[READ], tool_choice=choice, max_tokens=8)
    assert "tool_calls" not in last
    assert last["text"]
    assert last["finish_reason"] in ("stop", "length")


def test_results_go_back_to_the_model(calling: RawClient) -> None:
    made = last_of(calling, messages=user("Hi"), tools=[STOP], tool_choice="required", parallel_tool_calls=False)
    history = [
        *user("Hi"),
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": made["tool_calls"]},
        {"role": "tool", "tool_call_id": made["tool_calls"][0]["id"], "content": "stopped"},
    ]
    last = last_of(calling, messages=history, tools=[STOP], max_tokens=4)
    assert last["finish_reason"] in ("stop", "length"), last
    shorter = last_of(calling, messages=history[:1], tools=[STOP], max_tokens=1)
    assert last["usage"]["prompt_tokens"] > shorter["usage"]["prompt_tokens"] + len("stopped")


def test_a_schema_that_cannot_be_kept_is_refused_by_its_name(calling: RawClient) -> None:
    broken = {"type": "function", "function": {"name": "odd", "parameters": {"properties": {"a": {"type": "no"}}}}}
    error = last_of(calling, messages=user("Hi"), tools=[STOP, broken])["error"]
    assert (error["code"], error["field"]) == (400, "tools[1].function.parameters")
