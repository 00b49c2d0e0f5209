"""``parse=Type``: the schema that an answer is held to, and the value that it becomes. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest
from msgspec import Struct

from contract.errors import EngineFailed, RequestInvalid, SourceUnavailable, UsageError
from contract.mqtt.answers import Timing, Usage
from edge_bundle.completion import ChatMessage, Choice, Completion, FunctionCall, ToolCall
from edge_bundle.structured import parse_answer, response_format


class Step(Struct):
    text: str
    minutes: int = 5


class Recipe(Struct):
    title: str
    kind: Literal["soup", "cake"]
    steps: list[Step]
    notes: dict[str, str] = {}


def answer(text: str, finish_reason: str = "stop", calls: list[ToolCall] | None = None) -> Completion:
    choice = Choice(0, ChatMessage(text, tool_calls=calls), finish_reason)
    return Completion("q", "toy@1.0.0", [choice], Usage(1, 1, 2), Timing(queue_ms=0.0, total_ms=1.0), 1, 0)


def test_a_struct_is_a_closed_schema() -> None:
    found = response_format(Recipe)
    assert (found["type"], found["json_schema"]["name"]) == ("json_schema", "Recipe")
    definitions = found["json_schema"]["schema"]["$defs"]
    assert definitions["Recipe"]["required"] == ["title", "kind", "steps"]
    assert definitions["Recipe"]["additionalProperties"] is False
    assert definitions["Step"]["additionalProperties"] is False
    # What was meant to be open stays open.
    assert definitions["Recipe"]["properties"]["notes"]["additionalProperties"] == {"type": "string"}


@pytest.mark.parametrize(("type_", "text"), [(int, "7"), (list[str], '["a"]'), (dict[str, int], '{"a": 1}')])
def test_other_types_do_as_well(type_: type[Any], text: str) -> None:
    assert response_format(type_)["json_schema"]["schema"]
    assert parse_answer(answer(text), type_).parsed == msgspec.json.decode(text)


def test_an_answer_becomes_the_type() -> None:
    text = '{"title": "Stew", "kind": "soup", "steps": [{"text": "Cook", "minutes": 9}]}'
    done = parse_answer(answer(text), Recipe)
    assert done.parsed == Recipe("Stew", "soup", [Step("Cook", 9)])
    assert (done.choices[0].message.content, done.usage.total_tokens) == (text, 2)


@pytest.mark.parametrize(
    ("done", "error", "words"),
    [
        (answer('{"title": "St', "length"), RequestInvalid, "broke off at max_tokens before it was a whole Recipe"),
        (answer('{"title": "St', "deadline"), SourceUnavailable, "was deadline before it was a whole Recipe"),
        (answer('{"title": 3}'), EngineFailed, "the answer is no Recipe"),
        (answer("", "tool_calls", [ToolCall("c", FunctionCall("f", "{}"))]), RequestInvalid, "called tools"),
    ],
)
def test_what_cannot_be_read_says_why(done: Completion, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_answer(done, Recipe)


def test_a_type_without_a_schema_is_refused() -> None:
    with pytest.raises(UsageError, match="JSON schema"):
        response_format(object)
