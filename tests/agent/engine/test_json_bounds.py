"""JSON that its schema would let go on for ever comes to an end, whatever a model says; a schema's own bounds win."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.answer_limits import MAX_DEPTH, MAX_DIGITS, MAX_ITEMS, MAX_OPEN_BYTES, MAX_TEXT, Limits, limits_of
from agent.engine.interface import Tools
from agent.engine.json_bounds import JsonScanner, goes_on
from agent.engine.tools.call_grammar import argument_schemas, call_grammar
from agent.engine.tools.dialect import Dialect
from tests.agent.engine.json_vocabulary import LONGEST, JsonVocabulary


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> JsonVocabulary:
    return JsonVocabulary(tmp_path_factory.mktemp("vocabulary"))


TREE = {
    "$defs": {"node": {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}},
    "$ref": "#/$defs/node",
}
CHAIN = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["value", "next"],
    "additionalProperties": False,
}
OPEN: dict[str, Any] = {
    "anything": {},
    "object": {"type": "object"},
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number", "minimum": 0},
    "pattern": {"type": "string", "pattern": "^(ab)+$"},
    "array": {"type": "array"},
    "strings": {"type": "array", "items": {"type": "string"}},
    "lists": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    "rows": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}}},
    "map": {"type": "object", "additionalProperties": {"type": "number"}},
    "names": {"type": "object", "patternProperties": {"^x+$": {"type": "boolean"}}, "additionalProperties": False},
    "tree": TREE,
    "chain": CHAIN,
    "either": {"anyOf": [{"type": "array", "items": {"type": "null"}}, {"type": "string", "minLength": 1}]},
    "laid over": {"allOf": [{"type": "array"}, {"items": {"type": "string"}, "minItems": 1}]},
    "city": {"type": "object", "properties": {"pop": {"type": "integer"}}, "required": ["pop"]},
}


@pytest.mark.parametrize("schema", OPEN.values(), ids=OPEN)
@pytest.mark.parametrize("way", ["anything", "in_a_rut"])
def test_what_a_schema_leaves_open_comes_to_an_end(vocabulary: JsonVocabulary, schema: Any, way: str) -> None:
    for seed in range(1 + (way == "anything")):
        most = limits_of(schema).whole + 400
        text = vocabulary.say(vocabulary.hold(schema), getattr(vocabulary, way), seed, most)
        assert len(text.encode()) <= most
        check(json.loads(text), limits_of(schema))


def check(value: Any, limits: Limits, depth: int = 1) -> None:
    """Nothing in it is longer than its limit by more than a token."""
    if isinstance(value, str):
        assert len(value) <= limits.text + LONGEST
    elif isinstance(value, list | dict):
        assert len(value) <= (limits.items if isinstance(value, list) else limits.names) + LONGEST
        # A token may open several.
        assert depth <= limits.depth + LONGEST
        for each in value.values() if isinstance(value, dict) else value:
            check(each, limits, depth + 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        assert abs(value) < 10 ** (limits.digits + LONGEST)


def test_a_rut_goes_up_to_the_limits_that_are_documented(vocabulary: JsonVocabulary) -> None:
    def ends(schema: Any) -> Any:
        return json.loads(vocabulary.say(vocabulary.hold(schema), vocabulary.in_a_rut))

    assert MAX_TEXT <= len(ends({"type": "string"})) <= MAX_TEXT + LONGEST
    assert MAX_DIGITS <= len(str(abs(ends({"type": "integer", "minimum": 1})))) <= MAX_DIGITS + LONGEST
    assert len(ends({"type": "array", "items": {"const": 7}})) == MAX_ITEMS


OWN: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "maxLength": ({"type": "string", "maxLength": 5000}, lambda found: len(found) == 5000),
    "minLength": ({"type": "string", "minLength": 3000}, lambda found: len(found) >= 3000),
    "maxItems": ({"type": "array", "items": {"const": 1}, "maxItems": 500}, lambda found: len(found) == 500),
    "minItems": ({"type": "array", "items": {"const": "a"}, "minItems": 200}, lambda found: len(found) >= 200),
    "pattern": ({"type": "string", "pattern": "^(ab){1500}$"}, lambda found: found == "ab" * 1500),
    "pattern up to": ({"type": "string", "pattern": "^a{1,4000}$"}, lambda found: len(found) == 4000),
    "const": ({"const": ["x" * 2100] * 2}, lambda found: found == ["x" * 2100] * 2),
    "enum": ({"enum": ["y" * 2100]}, lambda found: len(found) == 2100),
    "items of a tuple": (
        {"type": "array", "prefixItems": [{"const": number} for number in range(100)], "items": False, "minItems": 100},
        lambda found: found == list(range(100)),
    ),
    "laid over": (
        {"allOf": [{"type": "string"}, {"minLength": 2500}, {"maxLength": 2600}]},
        lambda found: 2500 <= len(found) <= 2600,
    ),
    "rows": (
        {"type": "array", "maxItems": 100, "minItems": 100, "items": {
            "type": "object", "properties": {"t": {"type": "string", "minLength": 100, "maxLength": 120}},
            "required": ["t"], "additionalProperties": False}},
        lambda found: len(found) == 100 and all(len(each["t"]) == 120 for each in found),
    ),
    "deep": (
        json.loads('{"type": "array", "minItems": 1, "items": ' * 12 + '{"const": 1}' + "}" * 12),
        lambda found: json.dumps(found).count("[") >= 12,
    ),
    "many names": (
        {"type": "object", "properties": {f"k{n}": {"const": n} for n in range(99)},
         "required": [f"k{n}" for n in range(99)]},
        lambda found: len(found) >= 99,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "holds"), OWN.values(), ids=OWN)
def test_bounds_of_the_schema_win(vocabulary: JsonVocabulary, schema: Any, holds: Callable[[Any], bool]) -> None:
    text = vocabulary.say(vocabulary.hold(schema), vocabulary.in_a_rut)
    assert holds(json.loads(text)), text[:300]


LEAVES = st.sampled_from([
    {}, {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": ["string", "null"]}, {"type": "boolean"},
    {"type": "array"}, {"type": "object"}, {"enum": ["a", 1]}, {"$ref": "#"},
])  # fmt: skip


def _larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    return st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 3}, inner),
        st.builds(lambda made: {"type": "object", "properties": made}, names),
        st.builds(lambda made: {"type": "object", "properties": made, "required": sorted(made)[:1]}, names),
        st.builds(lambda made: {"type": "object", "additionalProperties": made}, inner),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
    )


@settings(max_examples=10, deadline=None)
@given(schema=st.recursive(LEAVES, _larger, max_leaves=6), seed=st.integers(0, 99), rut=st.booleans())
def test_any_schema_that_has_an_end_comes_to_it(vocabulary: JsonVocabulary, schema: Any, seed: int, rut: bool) -> None:
    try:
        constraint = vocabulary.hold(schema)
    except Exception:
        return
    text = vocabulary.say(constraint, vocabulary.in_a_rut if rut else vocabulary.anything, seed, most=60_000)
    json.loads(text)


HERMES_TEMPLATE = "{% if tools %}<tool_call>{% endif %}"


def test_arguments_of_calls_have_the_same_bounds(vocabulary: JsonVocabulary) -> None:
    parameters = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
    tools = Tools([{"type": "function", "function": {"name": "note", "parameters": parameters}}], "required")
    dialect = Dialect(HERMES_TEMPLATE, {}, lambda token: vocabulary.tokenizer.decode([token]))

    text = call_grammar(
        Tools(tools.definitions, "required", parallel=False), dialect.form, None, opened=False, tokens={}
    )
    constraint = vocabulary.grammars.constraint(
        ("calls", text), schemas=argument_schemas(tools).values(), marks=dialect.before_arguments(tools)
    )
    said = vocabulary.say(constraint, vocabulary.in_a_rut, most=9000)
    call = json.loads(said.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert MAX_TEXT <= len(call["arguments"]["what"]) <= MAX_TEXT + LONGEST
    assert len(said) <= limits_of(parameters).whole + 400


def test_what_a_thought_says_does_not_count() -> None:
    scanner = JsonScanner(Limits(text=3), (b"</think>",))
    scanner.feed(b'"long enough')
    assert scanner.fullness() is None
    scanner.feed(b'</think>{"a": "bcd')
    full = scanner.fullness()
    assert full is not None
    assert full.text
    assert goes_on(full, b"e")
    assert not goes_on(full, b'"}')


def test_limits_of_ordinary_schemas_are_the_documented_ones() -> None:
    assert limits_of(OPEN["string"]) == limits_of(OPEN["integer"]) == Limits()
    assert limits_of({}) == Limits(whole=MAX_OPEN_BYTES)
    assert limits_of(OPEN["strings"]) == Limits(whole=MAX_OPEN_BYTES + 2)
    assert limits_of(TREE).depth == MAX_DEPTH
