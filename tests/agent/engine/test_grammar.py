"""What compiled formats promise beside being kept: compiled once, never shared, bounded, tight about white space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from agent.engine.grammar import COMPILED, FIELD, MAX_GRAMMAR_BYTES, Constraint, Grammars
from agent.serving.requests import choice_grammar
from contract.errors import RequestInvalid

ANY_OBJECT = ("json_schema", '{"type":"object"}')


class Counting(Grammars):
    """Says what it compiled."""

    compiled = 0

    def _compile(self, kind: str, text: str, after: str = "", field: str = FIELD) -> Any:
        self.compiled += 1
        return super()._compile(kind, text, after, field)


@pytest.fixture
def tokenizer(tiny_bundle: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))


@pytest.fixture
def grammars(tiny_bundle: Path, tokenizer: Tokenizer) -> Counting:
    eos = json.loads((tiny_bundle / "genai_config.json").read_text())["model"]["eos_token_id"]
    return Counting(tiny_bundle, tokenizer.get_vocab_size(), tuple(eos) if isinstance(eos, list) else (eos,))


def say(constraint: Constraint, tokenizer: Tokenizer, text: str) -> None:
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        assert constraint.mask()[token], f"{tokenizer.decode([token])!r} of {text!r} is not allowed"
        constraint.accept(token)


def test_a_format_is_compiled_once_and_every_answer_begins_it_anew(grammars: Counting, tokenizer: Tokenizer) -> None:
    first = grammars.constraint(("regex", "[ab]{2}"))
    before = first.mask()
    say(first, tokenizer, "ab")
    second = grammars.constraint(("regex", "[ab]{2}"))
    assert (second.mask() == before).all()
    say(second, tokenizer, "ba")
    assert grammars.compiled == 1


def test_a_stranger_with_many_formats_takes_no_memory_for_ever(grammars: Counting) -> None:
    for number in range(COMPILED + 1):
        grammars.constraint(("regex", f"a{{{number + 1}}}"))
    assert grammars.compiled == COMPILED + 1
    grammars.constraint(("regex", f"a{{{COMPILED + 1}}}"))
    grammars.constraint(("regex", "a{2}"))
    assert grammars.compiled == COMPILED + 1, "the last ones used are still there"
    grammars.constraint(("regex", "a{1}"))
    assert grammars.compiled == COMPILED + 2, "the oldest is gone"


def test_white_space_cannot_go_on_for_ever(grammars: Counting, tokenizer: Tokenizer) -> None:
    """A small model that is allowed to fill with blanks does nothing else up to the token limit."""
    blank = [
        token for token in tokenizer.get_vocab().values() if (text := tokenizer.decode([token])) and text.isspace()
    ]
    assert blank
    constraint = grammars.constraint(ANY_OBJECT)
    assert not constraint.mask()[blank].any(), "none before the object"
    say(constraint, tokenizer, '{"a":')
    for _ in range(3):
        allowed = [token for token in blank if constraint.mask()[token]]
        if not allowed:
            return
        constraint.accept(allowed[0])
    raise AssertionError("blanks follow blanks")


def test_a_format_that_is_too_long_is_not_compiled(grammars: Counting) -> None:
    with pytest.raises(RequestInvalid, match="256 KiB") as caught:
        grammars.constraint(("regex", "a" * (MAX_GRAMMAR_BYTES + 1)))
    assert caught.value.field == FIELD


CHOICES = ["on", "off", 'a "quoted" one', "back\\slash", "two\nlines", "grün 🙂", "on/off", "%json"]


@pytest.mark.parametrize("text", CHOICES)
def test_a_choice_is_one_of_its_texts_to_the_letter(grammars: Counting, tokenizer: Tokenizer, text: str) -> None:
    constraint = grammars.constraint(("calls", choice_grammar(CHOICES)))
    say(constraint, tokenizer, text)
    mask = constraint.mask()
    assert mask[list(grammars._eos)].any(), "it may end here"


def test_no_other_text_is_a_choice(grammars: Counting, tokenizer: Tokenizer) -> None:
    constraint = grammars.constraint(("calls", choice_grammar(["on", "off"])))
    first = tokenizer.encode("x", add_special_tokens=False).ids[0]
    assert not constraint.mask()[first]
    assert not constraint.mask()[list(grammars._eos)].any()


def test_a_grammar_of_a_client_is_kept(grammars: Counting, tokenizer: Tokenizer) -> None:
    constraint = grammars.constraint(("grammar", 'start: "turn " STATE\nSTATE: /on|off/'))
    say(constraint, tokenizer, "turn off")
    assert constraint.mask()[list(grammars._eos)].any()


@pytest.mark.parametrize(
    "text",
    [
        'start: %json {"type": "string"}',
        '%llguidance {"no_forcing": true}\nstart: "a"',
        "%import common.INT\nstart: INT",
        "start: A\nA: " + " & ".join(f"/.*{letter}.{{9}}/" for letter in "abcdefghij"),
        'start: "a',
        "begin: /a/",
        "start: missing",
        "start: " + '"a" ' * 30_000,
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_by_name(grammars: Counting, text: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        grammars.constraint(("grammar", text))
    assert caught.value.field == FIELD
    assert caught.value.code == 400
