"""Schemas that would keep a worker busy for minutes are refused, ordinary ones are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.schemas import (
    MAX_MULTIPLE,
    MAX_PATTERN_NAMES,
    MAX_PATTERNS_TOGETHER,
    check_schema,
    closed,
    without_idle,
)
from contract.errors import RequestInvalid
from tests.agent.engine.json_vocabulary import JsonVocabulary
from tests.agent.engine.schema_suite import says


def patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f".*a{{{number + 1}}}.*"} for number in range(count)]


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for number in range(depth):
        found = {"anyOf": [found, {"type": "integer"}], "pattern": f"a{number}"}
    return found


def named(count: int) -> dict[str, Any]:
    return {"type": "object", "patternProperties": {f"^k{number}$": {} for number in range(count)}}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": patterns(MAX_PATTERNS_TOGETHER + 1)},
        {"allOf": [{"properties": {"a": pattern}} for pattern in patterns(20)]},
        {"allOf": [{"type": "array", "items": pattern} for pattern in patterns(20)]},
        {"$defs": {"a": {"allOf": patterns(20)}}, "properties": {"a": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"format": "email"}, *patterns(MAX_PATTERNS_TOGETHER)]},
        nested(20),
        {"type": "integer", "multipleOf": 1_000_003},
        {"type": "number", "multipleOf": 1e9},
        {"type": "number", "multipleOf": 1e300},
        {"type": "number", "multipleOf": -1.234567},
        {"allOf": [{"type": "integer", "multipleOf": 97}, {"type": "integer", "multipleOf": 9973}]},
        {"properties": {f"k{number}": {"type": "integer", "multipleOf": 9900 + number} for number in range(9)}},
        named(MAX_PATTERN_NAMES + 1),
        {"allOf": [named(MAX_PATTERN_NAMES), {"patternProperties": {"x": {}}}]},
    ],
    ids=lambda schema: json.dumps(schema)[:50],
)
def test_what_would_take_minutes_or_gigabytes_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid) as caught:
        check_schema(json.dumps(schema))
    assert caught.value.field == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": patterns(MAX_PATTERNS_TOGETHER)},
        {"type": "object", "properties": dict(zip("abcdefghijklmnop", patterns(16), strict=True))},
        {
            "$defs": {"a": patterns(1)[0]},
            "type": "object",
            "properties": {
                "a": {"$ref": "#/$defs/a", "description": "one"},
                "b": {"anyOf": [*patterns(12), {"type": "null"}], "default": None, "title": "any"},
            },
        },
        {"type": "number", "multipleOf": 0.01, "minimum": 0},
        {"type": "integer", "multipleOf": MAX_MULTIPLE},
        {"properties": {"multipleOf": {"type": "integer"}, "pattern": {"type": "string"}, "allOf": {"const": 1}}},
        named(MAX_PATTERN_NAMES),
        {"enum": [True, {"multipleOf": True, "pattern": 1, "patternProperties": []}]},
    ],
    ids=lambda schema: json.dumps(schema)[:50],
)
def test_ordinary_schemas_pass(schema: dict[str, Any]) -> None:
    check_schema(json.dumps(schema))


def test_keywords_that_demand_nothing_are_left_out_and_names_and_literals_are_not() -> None:
    idle = {"uniqueItems": False, "propertyNames": {"type": "string"}}
    kept = {
        "properties": {"uniqueItems": {"type": "string"}, "propertyNames": {"type": "string"}},
        "const": {"uniqueItems": False},
        "enum": [idle],
        "propertyNames": {"pattern": "^a"},
        "uniqueItems": True,
    }
    assert without_idle(kept) == kept
    assert without_idle({**idle, "items": {"anyOf": [idle, {"$defs": {"a": idle}}]}}) == {
        "items": {"anyOf": [{}, {"$defs": {"a": {}}}]}
    }


WORDS = st.sampled_from(["allOf", "anyOf", "$ref", "pattern", "format", "multipleOf", "patternProperties", "a"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
        max_leaves=30,
    )
)
def test_any_json_is_judged(value: Any) -> None:
    try:
        check_schema(json.dumps(value))
    except RequestInvalid as refused:
        assert refused.field == "response_format"


CLOSED = {"additionalProperties": False}
NAMES: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        (NAMES, NAMES | CLOSED),
        (
            {"properties": {"b": NAMES}, "required": ["b"]},
            {"properties": {"b": NAMES | CLOSED}, "required": ["b"]} | CLOSED,
        ),
        ({"items": NAMES}, {"items": NAMES | CLOSED}),
        ({"anyOf": [NAMES, {"type": "null"}]}, {"anyOf": [NAMES | CLOSED, {"type": "null"}]}),
        ({"$ref": "#/$defs/x", "$defs": {"x": NAMES}}, {"$ref": "#/$defs/x", "$defs": {"x": NAMES | CLOSED}}),
        ({"properties": {"properties": NAMES}}, {"properties": {"properties": NAMES | CLOSED}} | CLOSED),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}} | CLOSED),
    ],
)
def test_an_object_that_names_its_properties_has_no_others(schema: Any, found: Any) -> None:
    assert closed(schema) == found


@pytest.mark.parametrize(
    "schema",
    [
        NAMES | {"additionalProperties": True}, NAMES | {"additionalProperties": {"type": "string"}},
        NAMES | {"patternProperties": {"^x": {}}}, NAMES | {"minProperties": 2}, NAMES | {"required": ["b"]},
        NAMES | {"allOf": [{"properties": {"b": {}}}]}, {"allOf": [NAMES, {"properties": {"b": {}}}]},
        {"type": "object"}, {}, True, {"const": NAMES}, {"enum": [NAMES]}, NAMES | {"required": "a"},
    ],
)  # fmt: skip
def test_what_is_said_of_other_names_stays(schema: Any) -> None:
    assert closed(schema) == schema


def test_a_name_that_was_not_given_cannot_be_written(tmp_path: Path) -> None:
    vocabulary = JsonVocabulary(tmp_path)
    for extra, allowed in (({}, False), ({"additionalProperties": True}, True)):
        constraint = vocabulary.grammars.constraint(("json_schema", json.dumps(NAMES | extra)))
        assert says(constraint, vocabulary, '{"a":"x","b":1}') is allowed
