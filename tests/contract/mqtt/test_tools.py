"""Functions in a request: read strictly, and every fault is named by its path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.engine.interface import Tools
from agent.serving.requests import to_generation
from contract.errors import RequestInvalid
from contract.mqtt.reading import parse_request
from contract.mqtt.tools import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, MAX_TOOLS, read_arguments


def tool(name: str = "read", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def body(**more: Any) -> bytes:
    return json.dumps({"id": "a", "messages": [{"role": "user", "content": "Hi"}], **more}).encode()


def faults(**more: Any) -> dict[str | None, str]:
    with pytest.raises(RequestInvalid) as refused:
        parse_request(body(**more))
    return {fault.field: fault.message for fault in refused.value.details or ()} or {
        refused.value.field: refused.value.message
    }


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def calling(arguments: str = "{}", call_id: str = "c1", **more: Any) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "read", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool(), tool("read")]}, "tools[1].function.name"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [tool()] * (MAX_TOOLS + 1)}, "tools"),
        ({"tools": [tool(params={})]}, "tools[0].function.params"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters.type"),
        ({"tools": [tool(parameters=nested(MAX_SCHEMA_DEPTH + 1))]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"title": "x" * MAX_SCHEMA_BYTES})]}, "tools[0].function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": tool("reed")}, "tool_choice.function.name"),
        ({"tools": [tool()], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [tool()], "num_beams": 2}, "num_beams"),
        ({"messages": [USER, calling("[1]")]}, "messages[1].tool_calls[0].function.arguments"),
        ({"messages": [USER, calling('{"a":')]}, "messages[1].tool_calls[0].function.arguments"),
        ({"messages": [USER, calling(json.dumps(nested(40)))]}, "messages[1].tool_calls[0].function.arguments"),
        ({"messages": [calling(role="user", content="x")]}, "messages[0].tool_calls"),
        ({"messages": [USER, {"role": "tool", "content": "3"}]}, "messages[1].tool_call_id"),
        (
            {"messages": [USER, calling(), {"role": "tool", "content": "3", "tool_call_id": "c2"}]},
            "messages[2].tool_call_id",
        ),
        ({"messages": [{**USER, "tool_call_id": "c1"}]}, "messages[0].tool_call_id"),
    ],
)
def test_a_fault_is_named_by_its_path(more: dict[str, Any], field: str) -> None:
    found = faults(**more)
    assert field in found, found


def test_all_faults_are_told_with_the_nearest_right_name() -> None:
    with pytest.raises(RequestInvalid) as refused:
        parse_request(
            body(
                tools=[tool("read_sensor", parameters={"type": "array"})],
                tool_choice=tool("read_senor"),
                messages=[USER, calling("3", "call_1"), {"role": "tool", "content": "x", "tool_call_id": "call_7"}],
            )
        )
    details = {fault.field: fault.suggestion for fault in refused.value.details}
    assert details == {
        "tools[0].function.parameters.type": None,
        "tool_choice.function.name": "read_sensor",
        "messages[1].tool_calls[0].function.arguments": None,
        "messages[2].tool_call_id": "call_1",
    }


def test_a_prompt_has_no_tools() -> None:
    with pytest.raises(RequestInvalid) as refused:
        parse_request(json.dumps({"id": "a", "prompt": "Hi", "tools": [tool()]}).encode())
    assert refused.value.field == "tools"


@pytest.mark.parametrize("choice", ["none", "auto", None])
def test_tools_may_be_none(choice: str | None) -> None:
    for tools in ([], None):
        _, request = parse_request(body(tools=tools, tool_choice=choice))
        assert to_generation(1, "c", request).tools is None


def test_how_the_engine_is_told() -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}
    tools = [tool(description="Reads.", parameters=parameters, strict=True), tool("stop", parameters=None)]
    _, request = parse_request(body(tools=tools, tool_choice=tool("stop"), parallel_tool_calls=False))
    assert to_generation(1, "c", request).tools == Tools(
        [tool(description="Reads.", parameters=parameters, strict=True), tool("stop")],
        "required",
        "stop",
        parallel=False,
    )
    _, request = parse_request(body(tools=tools, tool_choice="none", response_format={"type": "json_object"}))
    made = to_generation(1, "c", request)
    assert made.tools is None and made.grammar is not None
    _, request = parse_request(body(tools=tools, parallel_tool_calls=None))
    assert to_generation(1, "c", request).tools == Tools([tools[0], tool("stop")])


def test_a_history_reaches_the_engine() -> None:
    messages = [
        USER,
        calling('{"a": 1}', refusal=None, annotations=[], reasoning_content="Hm."),
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "21"}]},
    ]
    _, request = parse_request(body(messages=messages))
    assert to_generation(1, "c", request).messages == [
        USER,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "c1", "name": "read", "arguments": {"a": 1}}],
        },
        {"role": "tool", "content": "21", "tool_call_id": "c1", "name": "read"},
    ]


def test_arguments_that_are_left_empty_are_an_empty_object() -> None:
    assert read_arguments(" ") == read_arguments("{}") == {}
    assert read_arguments("[" * 5000) is None
