"""Bodies as programs write them for OpenAI: taken where the answer is what they ask for, else refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import RequestInvalid
from contract.mqtt import reading
from contract.mqtt.conversation import Message
from contract.mqtt.requests import GenerateRequest

PUBLISHED = json.loads((Path(__file__).parent / "openai_fields.json").read_bytes())
"""Names of OpenAI's published description of chat completions."""

FIELDS = {field.name: field for field in msgspec.structs.fields(GenerateRequest)}

HI = [{"role": "user", "content": "Hi"}]


def read(**fields: Any) -> GenerateRequest:
    body = {"id": "r", "messages": HI, **fields}
    return reading.parse_request(json.dumps(body).encode())[1]


def faults(**fields: Any) -> dict[str | None, str | None]:
    with pytest.raises(RequestInvalid) as caught:
        read(**fields)
    assert caught.value.code == 400
    return {fault.field: fault.suggestion for fault in caught.value.details}


def test_every_published_name_is_known() -> None:
    assert set(PUBLISHED["request"]) <= FIELDS.keys()
    of_message = set(Message.__struct_fields__)
    for role, names in PUBLISHED["messages"].items():
        assert set(names) <= of_message, role


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("id", "messages")])
def test_null_is_as_if_it_were_left_out(name: str) -> None:
    assert read(**{name: None}) == read()


def test_null_counts_as_nothing_inside_messages_and_formats_as_well() -> None:
    answer = {
        "role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None,
        "tool_calls": None, "annotations": None, "name": None,
    }  # fmt: skip
    part = {"type": "text", "text": "x", "prompt_cache_breakpoint": None}
    found = read(
        messages=[*HI, answer, {"role": "user", "content": [part]}],
        stream_options={"include_usage": None, "include_obfuscation": None},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": None, "description": None, "strict": None, "schema": {"enum": [None]}},
            "regex": None,
        },
    )
    assert found.messages is not msgspec.UNSET
    assert found.messages[1].parts == []
    assert found.response_format is not None
    assert found.response_format.json_schema is not None
    assert found.response_format.json_schema.schema == {"enum": [None]}, "what a schema says is left alone"


def test_null_is_no_value_where_one_is_needed() -> None:
    assert set(faults(messages=[{"role": None, "content": "x"}])) == {"messages[0].role"}
    assert set(faults(messages=[{"role": "user", "content": None}])) >= {"messages[0].content"}
    assert set(faults(stop=[None])) == {"stop[0]"}


TAKEN: list[dict[str, Any]] = [
    {"model": "gpt-4o-mini"},
    {"user": "u-17", "safety_identifier": "s", "metadata": {"run": "7"}},
    {"store": False, "service_tier": "auto", "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
    {"prompt_cache_options": {"mode": "implicit"}, "prediction": {"type": "content", "content": "Hi"}},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"modalities": ["text"], "verbosity": "medium", "n": 1},
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": []},
    {"max_completion_tokens": 40},
    {"max_tokens": 40, "max_completion_tokens": 40},
    {"presence_penalty": -2, "frequency_penalty": 2.0},
    {"reasoning_effort": "minimal"},
    {"messages": [{"role": "developer", "content": "Be brief.", "name": "ops"}, *HI]},
    {"messages": [*HI, {"role": "assistant", "content": None, "refusal": "No."}, *HI]},
    {"messages": [*HI, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "annotations": []}]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "description": "d", "strict": False}}},
    {"response_format": {"type": "text"}},
]  # fmt: skip


@pytest.mark.parametrize("fields", TAKEN, ids=",".join)
def test_what_changes_no_answer_or_is_honoured_is_taken(fields: dict[str, Any]) -> None:
    read(**fields)


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1, 2**53 + 1, 0])
def test_seeds_have_64_bits(seed: int) -> None:
    assert read(seed=seed).seed == seed


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
def test_pictures_come_with_any_detail(detail: str) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    read(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, "detail": detail}}]}])


def test_what_would_change_the_answer_is_refused_by_name_and_all_of_it_at_once() -> None:
    assert faults(
        store=True,
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
        web_search_options={},
        moderation={"model": "m"},
        verbosity="low",
        functions=[{"name": "f"}],
        function_call={"name": "f"},
        max_new_tokens=5,
        repeat_penalty=1.1,
        temprature=1,
    ) == {
        "store": None,
        "modalities": None,
        "audio": None,
        "web_search_options": None,
        "moderation": None,
        "verbosity": None,
        "functions": "tools",
        "function_call": "tool_choice",
        "max_new_tokens": "max_tokens",
        "repeat_penalty": "repetition_penalty",
        "temprature": "temperature",
    }


def test_two_names_of_one_thing_may_not_differ() -> None:
    assert set(faults(max_tokens=5, max_completion_tokens=6)) == {"max_completion_tokens"}


@pytest.mark.parametrize(
    "changes",
    [
        {"presence_penalty": 2.1},
        {"frequency_penalty": -3},
        {"reasoning_effort": "lots"},
        {"n": 0},
        {"user": "u" * 513},
        {"metadata": {str(number): "" for number in range(17)}},
        {"metadata": {"k": "v" * 513}},
        {"metadata": {"k": 1}},
        {"service_tier": "gold"},
        {"stream_options": {"more": 1}},
        {"model": "m" * 257},
    ],
    ids=",".join,
)
def test_what_openai_would_refuse_is_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    assert [str(field).partition(".")[0] for field in faults(**changes)] == [name]


def fingerprint(text: str) -> str:
    return reading.request_fingerprint(reading.parse_request(text.encode(), b"r")[1])


BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Grüße 🙂"}],
    "temperature": 0.5,
    "logit_bias": {"5": 1, "7": -1},
    "metadata": {"a": "1", "b": "2"},
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object", "title": "x"}}},
    "stream_options": {"include_usage": True},
}


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        names = list(value)
        order.shuffle(names)
        return {name: shuffled(value[name], order) for name in names}
    return [shuffled(each, order) for each in value] if isinstance(value, list) else value


@given(st.randoms(use_true_random=False), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_a_repeat_in_another_order_and_spacing_is_the_same_request(
    order: random.Random, indent: Any, ascii_only: bool
) -> None:
    text = json.dumps(shuffled(BODY, order), indent=indent, ensure_ascii=ascii_only)
    assert fingerprint(text) == fingerprint(json.dumps(BODY))


def test_what_is_written_otherwise_and_means_the_same_is_the_same_request() -> None:
    same = {**BODY, "id": "r", "temperature": 5e-1, "stream": True, "stop": None, "n": 1}
    assert fingerprint(json.dumps(same)) == fingerprint(json.dumps(BODY))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.6},
        {"messages": [{"role": "user", "content": "Grüße"}]},
        {"messages": [*BODY["messages"], *BODY["messages"]]},
        {"logit_bias": {"5": 1}},
        {"stream": False},
        {"metadata": {"a": "2", "b": "1"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_value_is_another_request(changes: dict[str, Any]) -> None:
    assert fingerprint(json.dumps({**BODY, **changes})) != fingerprint(json.dumps(BODY))


@pytest.mark.parametrize(
    "form",
    [
        {"type": "grammar", "grammar": 'start: "a"'},
        {"type": "choice", "choice": ["on", "off"]},
        {"type": "regex", "regex": "a+"},
        {"type": "json_object"},
    ],
)
def test_formats_beyond_openais_have_a_member_of_their_name(form: dict[str, Any]) -> None:
    read(response_format=form)
    others = {"grammar", "choice", "regex", "json_schema"} - {form["type"]}
    for other in others:
        given = {"choice": ["a"], "json_schema": {}}.get(other, "a")
        assert set(faults(response_format={**form, other: given})) == {f"response_format.{other}"}
    if form["type"] in form:
        assert set(faults(response_format={"type": form["type"]})) == {f"response_format.{form['type']}"}


@pytest.mark.parametrize("choice", [[], [""], ["a"] * 129, ["x" * 257], "on"])
def test_choices_are_bounded(choice: Any) -> None:
    (field,) = faults(response_format={"type": "choice", "choice": choice})
    assert str(field).startswith("response_format.choice")
