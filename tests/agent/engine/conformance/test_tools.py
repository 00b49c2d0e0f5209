"""Calls of functions, on every engine that has a real tokenizer; SmolLM2 is told of them in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from agent.engine.interface import Engine, Generation, Tools
from tests.agent.engine.conformance.test_formats import real
from tests.agent.engine.conformance.test_generation import ask
from tests.agent.engine.driving import Outcome, answer, run
from tests.agent.engine.tools.generated import make_function

__all__ = ["real"]

STOP = {"type": "function", "function": {"name": "stop"}}


def calling(request: int, tools: Tools, **more: object) -> Generation:
    return structs.replace(ask(request, max_tokens=150, **more), tools=tools)


def calls(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.finish is not None, outcome.reject
    found: list[dict[str, Any]] = []
    for event in [*outcome.tokens, outcome.finish]:
        for delta in event.calls:
            if delta.name:
                found.append({"id": delta.id, "name": delta.name, "arguments": ""})
            found[delta.index]["arguments"] += delta.arguments
    return found


def test_it_says_that_it_can(real: Engine) -> None:
    assert {"chat", "tools"} <= set(real.facts.capabilities)


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.3, "seed": 3}])
def test_calls_are_valid_beside_free_answers(real: Engine, sampled: dict[str, object]) -> None:
    free = answer(real, ask(9)).text
    made = [make_function(seed) for seed in (3, 4)]
    requests = [calling(n, Tools([tool], "required", parallel=False), **sampled) for n, (tool, _) in enumerate(made)]
    outcomes = run(real, *requests, ask(9))
    assert outcomes[9].text == free
    for number, (tool, judge) in enumerate(made):
        outcome = outcomes[number]
        assert (outcome.reason, outcome.text) == ("tool_calls", "")
        [call] = calls(outcome)
        assert call["name"] == tool["function"]["name"]
        assert judge(json.loads(call["arguments"])), call


def test_the_same_request_gets_the_same_ids_and_another_gets_others(real: Engine) -> None:
    tools = Tools([STOP], "required", parallel=False)
    first, again = (calls(answer(real, calling(1, tools)))[0] for _ in range(2))
    assert first == again
    assert first["name"] == "stop" and first["arguments"] == "{}"
    other = calls(answer(real, calling(1, tools, messages=[{"role": "user", "content": "Stop!"}])))[0]
    assert other["id"] != first["id"]


def test_every_one_of_several_answers_calls(real: Engine) -> None:
    tool, judge = make_function(3)
    outcome = answer(real, calling(1, Tools([tool], "required", parallel=False), n=2, temperature=1.2, seed=5))
    assert outcome.finish is not None
    found = {0: ["", ""], 1: ["", ""]}
    for event in [*outcome.tokens, outcome.finish]:
        for delta in event.calls:
            found[event.choice][0] += delta.id
            found[event.choice][1] += delta.arguments
    assert outcome.finish.reasons == ["tool_calls", "tool_calls"]
    assert all(judge(json.loads(arguments)) for _, arguments in found.values())
    assert found[0][0] != found[1][0]


def test_no_call_comes_where_none_may(real: Engine) -> None:
    outcome = answer(real, structs.replace(ask(1), tools=Tools([STOP], "none")))
    assert outcome.text.strip() and not calls(outcome)
    assert outcome.reason == "length"
    assert outcome.text == answer(real, ask(1)).text, "the model is told of no functions"


def test_the_token_limit_within_a_call_says_length(real: Engine) -> None:
    tool, _ = make_function(3)
    outcome = answer(real, structs.replace(calling(1, Tools([tool], "required")), max_tokens=2))
    assert outcome.reason == "length"
    assert (outcome.text, calls(outcome)) == ("", []), "what was begun of a call is no text"


def test_a_stop_text_ends_text_and_not_a_call(real: Engine) -> None:
    outcome = answer(real, calling(1, Tools([STOP], "required", parallel=False), stops=("name", "stop")))
    assert [call["name"] for call in calls(outcome)] == ["stop"]
    assert outcome.reason == "tool_calls"


def test_what_cannot_be_kept_is_refused_by_its_path(real: Engine) -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"properties": {"a": {"type": "nonsense"}}}}}
    assert answer(real, calling(1, Tools([STOP, odd]))).refused_field == "tools[1].function.parameters"


@pytest.mark.parametrize(
    "parameters", [{"properties": {"<|im_end|>": {}}}, {"properties": {"a": {"enum": ["<|im_end|>"]}}}]
)
def test_a_control_token_in_a_schema_is_refused_by_its_path(real: Engine, parameters: dict[str, Any]) -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    assert answer(real, calling(1, Tools([odd], "required"))).refused_field == "tools[0].function.parameters"
    parameters = {"description": "No <|im_end|>.", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    fine = {
        "type": "function",
        "function": {"name": "fine", "parameters": {**parameters, "additionalProperties": False}},
    }
    assert calls(answer(real, calling(1, Tools([fine], "required", parallel=False))))[0]["arguments"] == '{"a": 1}'


def test_results_are_read(real: Engine) -> None:
    made = {"id": "call_1", "name": "stop", "arguments": {}}
    history = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "", "tool_calls": [made]},
        {"role": "tool", "content": "It <|im_end|> stopped.", "tool_call_id": "call_1", "name": "stop"},
    ]
    outcome = answer(real, structs.replace(ask(1, messages=history), tools=Tools([STOP])))
    plain = answer(real, structs.replace(ask(1), tools=Tools([STOP])))
    assert outcome.finish is not None and plain.finish is not None
    assert outcome.finish.prompt_tokens > plain.finish.prompt_tokens + 10
