"""The family is found by the template, and what the template writes of calls is read back as these calls."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from agent.engine.interface import Tools
from agent.engine.tools.forms import (
    GEMMA,
    GENERIC,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGUMENTS,
    MISTRAL_NEMO,
    PHI,
    CallForm,
    find_form,
    find_thoughts,
)
from agent.engine.tools.rendering import converse, short_id
from contract.chat.files import ChatFiles
from contract.chat.template import ChatTemplate
from contract.errors import RequestInvalid
from tests.agent.engine.tools.test_answer_reader import read
from tests.chat_templates import SPECIAL, TEMPLATES, TOOLS

FAMILIES: dict[str, CallForm] = {
    "qwen2.5": HERMES,
    "qwen3": HERMES,
    "hermes": HERMES,
    "llama-3.2": LLAMA,
    "mistral-v0.3, nemo": MISTRAL,
    "phi-4-mini": PHI,
    "gemma, gemma-2": GEMMA,
    "gemma-3": GEMMA,
}

MODELS = [name for name in TEMPLATES if name != "operators and filters"]

CALLS = [
    {"id": "call_0123", "name": "read_sensor", "arguments": {"which": 'a "b" } é', "n": [1, {"x": None}]}},
    {"id": "call_4567", "name": "stop", "arguments": {}},
]
ASKED = {"role": "user", "content": "Read it."}


def rendered(name: str, turns: list[dict[str, Any]], tools: Tools | None) -> str:
    template = ChatTemplate(ChatFiles({"default": TEMPLATES[name]}, SPECIAL))

    def has_system() -> bool:
        try:
            return "PROBE" in template.render([{"role": "system", "content": "PROBE"}, ASKED])
        except RequestInvalid:
            return False

    found = converse(turns, tools, find_form(TEMPLATES[name]), has_system=has_system)
    turns = [{**turn, "content": turn["content"] + turn.pop("suffix", "")} for turn in found.turns]
    return template.render(turns, tools=found.tools, variables={"controls": {}})


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_tells_the_family(name: str) -> None:
    assert find_form(TEMPLATES[name]) == FAMILIES.get(name, GENERIC)


def test_marks_tell_the_newer_forms() -> None:
    assert find_form("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}") == MISTRAL_ARGUMENTS
    assert find_form("{{ '[TOOL_CALLS][' }}") == MISTRAL_NEMO
    assert find_form("") == GENERIC


def test_the_template_tells_of_thoughts() -> None:
    thinking = {name for name, text in TEMPLATES.items() if find_thoughts(text)}
    assert thinking == {"smollm3", "qwen3", "deepseek-distill"}
    assert find_thoughts("[THINK]{{ x }}[/THINK]") is not None


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_told_of_its_functions(name: str) -> None:
    text = rendered(name, [ASKED], Tools(TOOLS))
    for tool in TOOLS:
        assert tool["function"]["name"] in text
    assert "which" in text and "Read it." in text
    if name != "hermes":  # it is told of tools in its system message even where there are none
        assert "read_sensor" not in rendered(name, [ASKED], Tools(TOOLS, "none"))


@pytest.mark.parametrize("name", MODELS)
def test_calls_of_the_history_are_written_as_the_model_writes_them(name: str) -> None:
    form = find_form(TEMPLATES[name])
    calls = CALLS if form.between is not None else CALLS[:1]
    turns = [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": "21.5"} for call in calls),
    ]
    text = rendered(name, turns, Tools(TOOLS))
    assert text.count("21.5") == len(calls), "every result is there"
    starts = [place for place in range(len(text)) if text.startswith(form.begin or form.before_name, place)]
    names = {call["name"] for call in calls}
    read_back = [read(form, [text[start:]], thoughts=None) for start in starts]
    best = max((whole.calls for whole in read_back), key=len, default=[])
    assert {call["name"] for call in best} <= names
    assert [call["name"] for call in best][:1] == ["read_sensor"], text


@pytest.mark.parametrize("name", ["gemma, gemma-2", "llama-2", "mistral-v0.1"])
def test_turns_alternate_where_the_template_wants_them_to(name: str) -> None:
    turns = [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        *({"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": "21.5"} for call in CALLS),
        {"role": "user", "content": "And now?"},
    ]
    assert "And now?" in rendered(name, turns, Tools(TOOLS))


def test_ids_are_as_mistral_wants_them() -> None:
    assert short_id("abc123def") == "abc123def"
    ids = {short_id(f"call_{number}") for number in range(100)}
    assert len(ids) == 100
    assert all(len(found) == 9 and found.isalnum() for found in ids)


def test_an_unknown_result_is_one_of_the_function() -> None:
    found = converse([{"role": "tool", "content": "3"}], None, GENERIC, has_system=itertools.repeat(True).__next__)
    assert found.turns == [{"role": "user", "content": "Result of the function: 3"}]
