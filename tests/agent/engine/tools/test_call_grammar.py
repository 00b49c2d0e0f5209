"""What the grammar of an answer allows, in every form, with marks that are tokens, and with marks spelled out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from agent.engine.grammar import Constraint, Grammars
from agent.engine.interface import Tools
from agent.engine.tools.call_grammar import argument_schemas, call_grammar, thought_grammar
from agent.engine.tools.forms import HERMES, LLAMA, MARKERS, PHI, THOUGHTS, CallForm
from tests.agent.engine.tools.test_answer_reader import FORMS

THINK = THOUGHTS[0]


def function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": sorted(properties)[-1:],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    function("read", which={"type": "string", "maxLength": 9}, digits={"type": "integer"}),
    function("read_sensor", which={"enum": ["a", "b"]}),
    {"type": "function", "function": {"name": "stop"}},
]


class Speaker:
    """Says texts token by token under a grammar."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, *, marked: bool) -> None:
        if marked:
            texts = sorted({*MARKERS, THINK.begin, THINK.end})
            tokenizer.add_tokens([AddedToken(text, special=text.startswith("["), normalized=False) for text in texts])
        directory.mkdir(exist_ok=True)
        tokenizer.save(str(directory / "tokenizer.json"))
        self.tokenizer = tokenizer
        marks = {*MARKERS, THINK.begin, THINK.end}
        self.tokens = {text: token for text, token in tokenizer.get_vocab().items() if text in marks}
        self.grammars = Grammars(directory, tokenizer.get_vocab_size(), (2,))

    def begin(self, form: CallForm, tools: Tools, *, thinks: bool = False, opened: bool = False) -> Constraint:
        thoughts = THINK if thinks else None
        text = call_grammar(tools, form, thoughts, opened=opened, tokens=self.tokens)
        return self.grammars.constraint(("calls", text))

    def says(self, constraint: Constraint, text: str) -> bool:
        """Whether ``text`` may be the whole answer."""
        for token in self.tokenizer.encode(text, add_special_tokens=False).ids:
            if constraint.complete or not constraint.mask()[token]:
                return False
            constraint.accept(token)
        return constraint.complete or bool(constraint.mask()[2])


@pytest.fixture(scope="module", params=[True, False], ids=["tokens", "spelled"])
def speaker(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    return Speaker(tmp_path_factory.mktemp("speaker"), tokenizer, marked=request.param)


def written(form: CallForm, *calls: tuple[str, str]) -> str:
    each = [form.before_name + name + form.after_name + made + form.after_arguments for name, made in calls]
    return form.begin + form.lead + (form.between or "").join(each) + form.end


ONE = ("read", '{"which": "a\\n\\"<"}')
OTHER = ("stop", "{}")
PREFIX = ("read_sensor", '{"which": "b"}')


@pytest.mark.parametrize("choice", ["auto", "required", "none"])
@pytest.mark.parametrize(("thinks", "opened"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_text_and_calls(speaker: Speaker, form: CallForm, thinks: bool, opened: bool, choice: Any) -> None:
    before = "" if not thinks else 'hm { < {"name": "\n</think>\n\n' if opened else "<think>\nhm\n</think>\n\n"
    calls, several = choice != "none", choice != "none" and form.between is not None
    expected = {
        "Well { you <": choice != "required",
        written(form, ONE): calls,
        written(form, ONE, PREFIX, OTHER): several,
        (f"Well.\n{written(form, OTHER)}"): choice == "auto" and bool(form.begin),
        written(form, ("nothing", "{}")): False,
        written(form, ("read", '{"digits": 3}')): False,
        written(form, ("read_sensor", '{"which": "c"}')): False,
        (written(form, OTHER) + " and more"): False,
    }
    if not form.begin:
        expected.pop(f"Well.\n{written(form, OTHER)}")
    for text, allowed in expected.items():
        constraint = speaker.begin(form, Tools(TOOLS, choice), thinks=thinks, opened=opened)
        assert speaker.says(constraint, before + text) == allowed, before + text


@pytest.mark.parametrize("form", [HERMES, PHI, LLAMA])
def test_one_function_and_one_call(speaker: Speaker, form: CallForm) -> None:
    named = Tools(TOOLS, "required", function="stop", parallel=False)
    assert speaker.says(speaker.begin(form, named), written(form, OTHER))
    assert not speaker.says(speaker.begin(form, named), written(form, ONE))
    if form.between:
        assert not speaker.says(speaker.begin(form, named), written(form, OTHER, OTHER))
    constraint = speaker.begin(form, named)
    speaker.says(constraint, written(form, OTHER))
    constraint.mask()
    assert constraint.complete, "it ends by itself"


def test_a_thought_without_a_mark_is_no_text(speaker: Speaker) -> None:
    """What the reader would take for a thought cannot be said as text."""
    for choice in ("auto", "none"):
        constraint = speaker.begin(HERMES, Tools(TOOLS, choice), thinks=True)  # type: ignore[arg-type]
        assert not speaker.says(constraint, "<think>")


def test_a_format_holds_after_a_thought_that_the_prompt_began(speaker: Speaker) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    after = thought_grammar(THINK, speaker.tokens)
    for grammar, body in ((("json_schema", schema), '{"a":1}'), (("regex", "[ab]{2}"), "ab")):
        for text, allowed in ((f"{{ hm\n</think>\n\n{body}", True), (body, False), ("hm</think>x", False)):
            constraint = speaker.grammars.constraint(grammar, after=after)
            assert speaker.says(constraint, text) == allowed


def test_schemas_by_their_fields() -> None:
    found = argument_schemas(Tools([*TOOLS, {"function": {"name": "any", "parameters": {}}}]))
    assert list(found)[2] == "tools[2].function.parameters"
    assert json.loads(found["tools[2].function.parameters"])["additionalProperties"] is False
    assert json.loads(found["tools[3].function.parameters"]) == {"type": "object"}
