"""JSON schemas and regular expressions, on every engine that has a real tokenizer."""

from __future__ import annotations

import json
import re

import pytest

from agent.engine.interface import Engine
from tests.agent.engine.conformance.test_generation import ask
from tests.agent.engine.driving import answer, run

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 99999999}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest.fixture(params=["genai", "batched"])
def real(request: pytest.FixtureRequest) -> Engine:
    """The stand-in has no tokenizer.json to compile grammars for."""
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.3, "seed": 3}])
def test_a_schema_is_kept(real: Engine, sampled: dict[str, object]) -> None:
    outcome = answer(real, ask(grammar=("json_schema", json.dumps(CITY)), max_tokens=60, **sampled))
    assert outcome.reason == "stop"
    found = json.loads(outcome.text)
    assert found.keys() == {"city", "people"}
    assert isinstance(found["people"], int)


def test_a_pattern_is_kept_beside_free_answers(real: Engine) -> None:
    pattern = r"(yes|no), [A-Z][a-z]{2,8}\."
    free = answer(real, ask(2)).text
    outcomes = run(real, ask(1, grammar=("regex", pattern)), ask(2), ask(3, grammar=("regex", "[0-9]{4}")))
    assert re.fullmatch(pattern, outcomes[1].text)
    assert re.fullmatch("[0-9]{4}", outcomes[3].text)
    assert outcomes[2].text == free


def test_the_token_limit_inside_a_schema_says_length(real: Engine) -> None:
    outcome = answer(real, ask(grammar=("json_schema", json.dumps(CITY)), max_tokens=3))
    assert outcome.reason == "length"


@pytest.mark.parametrize(
    "grammar",
    [
        ("json_schema", '{"type":"nonsense"}'),
        ("json_schema", '{"allOf":[{"type":"string"},{"type":"integer"}]}'),
        ("json_schema", "false"),
        ("json_schema", "not json"),
        ("json_schema", '{"$ref":"http://example.com/schema"}'),
        ("regex", "("),
        ("regex", "(a{1000}){1000}"),
        ("lark", "start: /a/"),
    ],
)
def test_what_cannot_be_followed_is_refused(real: Engine, grammar: tuple[str, str]) -> None:
    assert answer(real, ask(grammar=grammar)).refused_field == "response_format"


@pytest.mark.parametrize(
    "schema",
    [{"enum": ["<|im_end|>"]}, {"type": "object", "properties": {"<|im_start|>": {}}, "required": ["<|im_start|>"]}],
)
def test_a_schema_that_spells_out_a_control_token_is_refused_at_once(real: Engine, schema: object) -> None:
    outcome = answer(real, ask(grammar=("json_schema", json.dumps(schema)), max_tokens=20))
    assert outcome.refused_field == "response_format"
