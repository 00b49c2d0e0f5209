"""An answer is taken apart the same way however it is cut into pieces, and nothing of it is lost."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from agent.engine.tools.answer_reader import AnswerReader, Parts
from agent.engine.tools.forms import (
    GEMMA,
    GENERIC,
    GRANITE,
    HERMES,
    LLAMA,
    MARKERS,
    MISTRAL,
    MISTRAL_ARGUMENTS,
    MISTRAL_NEMO,
    PHI,
    THOUGHTS,
    CallForm,
)

FORMS = (HERMES, MISTRAL, MISTRAL_NEMO, MISTRAL_ARGUMENTS, LLAMA, PHI, GRANITE, GEMMA, GENERIC)
THINK = THOUGHTS[0]
NAMES = ("read_sensor", "read", "stop-it")


class Whole(Struct):
    """What the parts of an answer join to."""

    text: str = ""
    thought: str = ""
    calls: list[dict[str, str]] = []

    def add(self, parts: Parts) -> None:
        self.text += parts.text
        self.thought += parts.thought
        for delta in parts.calls:
            if delta.name:
                assert delta.index == len(self.calls), "calls begin in order"
                assert delta.id and not delta.arguments, "the first delta names the call, and no more"
                self.calls.append({"id": delta.id, "name": delta.name, "arguments": ""})
            else:
                assert delta.index == len(self.calls) - 1, "arguments are of the call that began last"
                assert not delta.id and delta.arguments
                self.calls[delta.index]["arguments"] += delta.arguments


def read(form: CallForm | None, pieces: list[str], **more: Any) -> Whole:
    reader = AnswerReader(more.pop("thoughts", THINK), form, names=NAMES, **more)
    whole = Whole()
    for piece in pieces:
        whole.add(reader.feed(piece))
    whole.add(reader.finish())
    return whole


def cut(text: str, places: list[int]) -> list[str]:
    ends = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(sorted(MARKERS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
calls = st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=6), values, max_size=3))
said = st.text(alphabet='ab{}[]<>"\n |/toolcall_:,😀', max_size=30)
scraps = st.lists(
    st.sampled_from([
        *MARKERS, "<think>", "</think>", " ", "\n", "{", "}", "[", "]", ", ", '{"name": "', "read", '", "arguments": ',
        '", "parameters": ', '{"a": "}"}', "x", "<", "</", "<tool_", "[TOOL", '"', "\\", "é",
    ]),
    max_size=14,
).map("".join)  # fmt: skip


def written(form: CallForm, made: list[tuple[str, dict[str, Any]]]) -> str:
    each = [
        form.before_name + name + form.after_name + json.dumps(arguments, ensure_ascii=False) + form.after_arguments
        for name, arguments in made
    ]
    return form.begin + form.lead + (form.between or "").join(each) + form.end


@pytest.mark.parametrize("form", FORMS, ids=[f"{form.name} {form.lead}{form.after_name}" for form in FORMS])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_read(form: CallForm, data: st.DataObject) -> None:
    thought = data.draw(said.filter(lambda text: THINK.end not in text).map(str.strip), "thought")
    text = data.draw(said.map(str.strip), "text") if form.begin else ""
    made = data.draw(st.lists(calls, min_size=1, max_size=3 if form.between else 1), "calls")
    if form.begin and (form.begin in text + form.begin[:-1] or text.startswith("<think>")):
        text = ""
    answer = f"{THINK.begin}\n{thought}\n{THINK.end}\n\n{text}{written(form, made)}"
    whole = read(form, cut(answer, data.draw(st.lists(st.integers(min_value=0), max_size=12), "cuts")))
    assert (whole.thought, whole.text) == (thought, text)
    assert [(call["name"], json.loads(call["arguments"])) for call in whole.calls] == made
    assert len({call["id"] for call in whole.calls}) == len(made)


@pytest.mark.parametrize("form", [*FORMS, None])
@given(answer=scraps | said, opened=st.booleans(), places=st.lists(st.integers(min_value=0), max_size=20))
@settings(max_examples=150, deadline=None)
def test_where_it_is_cut_changes_nothing(form: CallForm | None, answer: str, opened: bool, places: list[int]) -> None:
    assert read(form, cut(answer, places), opened=opened) == read(form, [answer], opened=opened)
    assert read(form, list(answer), opened=opened) == read(form, [answer], opened=opened)


@given(text=said, places=st.lists(st.integers(min_value=0), max_size=9))
def test_without_calls_and_thoughts_nothing_is_changed(text: str, places: list[int]) -> None:
    assert read(None, cut(text, places), thoughts=None) == Whole(text)
    if HERMES.begin not in text:
        assert read(HERMES, cut(text, places), thoughts=None) == Whole(text)


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        (HERMES, "See <tool_call> in the manual."),
        (HERMES, 'a\n<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "read", "arguments": [1]}\n</tool_call>'),
        (HERMES, f'<tool_call>\n{{"name": "{"x" * 80}", "arguments": {{}}}}'),
        (LLAMA, '{"title": "read"}'),
        (LLAMA, ' {"name'),
        (GENERIC, "The answer is {}."),
        (MISTRAL_ARGUMENTS, "[TOOL_CALLS]nothing[ARGS]{}"),
    ],
)
def test_what_only_looks_like_a_call_is_text(form: CallForm, answer: str) -> None:
    for pieces in ([answer], list(answer)):
        assert read(form, pieces) == Whole(answer)


def test_arguments_come_as_they_are_written() -> None:
    reader = AnswerReader(None, HERMES, names=NAMES)
    assert reader.feed('Let me look.\n<tool_call>\n{"name": "read", "argu') == Parts("Let me look.")
    assert [delta.name for delta in reader.feed('ments": {"wh').calls] == ["read", ""]
    assert reader.feed('ich": "a').calls[0].arguments == 'ich": "a'
    assert reader.calls == 0
    assert reader.feed('"}}').calls[0].arguments == '"}'
    assert reader.calls == 1


@pytest.mark.parametrize("cut_off", ['<tool_call>\n{"na', '<tool_call>\n{"name": "read", "argum', "<tool_call>"])
def test_a_call_that_is_cut_off_before_its_arguments_is_dropped(cut_off: str) -> None:
    assert read(HERMES, ["Well. ", cut_off]) == Whole("Well.")


@pytest.mark.parametrize("form", FORMS)
def test_where_a_call_is_required_its_beginning_is_no_text(form: CallForm) -> None:
    whole = written(form, [("read", {})])
    for end in range(whole.index("read")):
        assert read(form, list(whole[:end]), thoughts=None, required=True) == Whole(), whole[:end]


def test_a_call_that_is_cut_off_in_its_arguments_is_there_as_far_as_it_came() -> None:
    whole = read(HERMES, ['<tool_call>\n{"name": "read", "arguments": {"which": "bo'])
    assert whole.calls == [{"id": "call_0", "name": "read", "arguments": '{"which": "bo'}]


def test_a_thought_that_the_prompt_began_is_one() -> None:
    assert read(None, ["So ", "it is.\n</thi", "nk>\n\nYes."], opened=True) == Whole("Yes.", "So it is.")
    assert read(None, ["So it is."], opened=True) == Whole("", "So it is.")
    assert read(None, ["<think>\n\n</think>\n\nYes."]) == Whole("Yes.")
    assert read(None, ["Yes <think>no</think>."]) == Whole("Yes <think>no</think>.")
