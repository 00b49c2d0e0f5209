"""The grammar of an answer of a model that has tools, in llguidance's dialect of Lark. Pure.

Free text until a call begins, then nothing but calls: one of the functions' names, and arguments by its schema. Texts
that are tokens of the model's own vocabulary stand there as tokens, so that it says them as it learned to. Within text
and thought the marks cannot be spelled out, or the answer would be read otherwise than it was meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agent.engine.interface import Tools
from agent.engine.schemas import REMARKS, closed, without_idle
from agent.engine.tools.forms import CallForm, ThoughtForm

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As templates write JSON, and so as models have read it."""

SPACE = r"\n{0,2}"
"""What may stand between a thought and a call."""

BLANK = r"[ \t\r\n]*"

DEFINED = ("$defs", "definitions")

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
"""Arguments of a function that has no parameters."""


def call_grammar(
    tools: Tools, form: CallForm, thoughts: ThoughtForm | None, *, opened: bool, tokens: Mapping[str, int]
) -> str:
    """``opened``: the prompt has begun a thought. ``tokens``: the added tokens of the vocabulary, by their texts."""
    rules = ["%llguidance {}"]
    thought = ""
    if thoughts is not None:
        thought = "thought " if opened else "thought? "
        begin = "" if opened else _literal(thoughts.begin, tokens) + " "
        rules += [f"thought: {begin}thought_end", *_up_to("thought_end", _without(thoughts.end), thoughts.end, tokens)]
    # What began like a thought would be read as one.
    no_thought = "" if thoughts is None or opened else f" & ~/{BLANK}{_escaped(thoughts.begin)}(?s:.*)/"
    plain = ["plain: PLAIN", f"PLAIN: {_without_calls(form)}{no_thought}"]
    if tools.choice == "none":
        return "\n".join([*rules, f"start: {thought}plain", *plain]) + "\n"
    if tools.choice == "required":
        rules += [f"start: {thought}SPACE {_literal(form.begin, tokens)} calls", f"SPACE: /{SPACE}/"]
    elif form.begin:
        rules += [f"start: {thought}(plain | head calls)", *plain, *_up_to("head", "PLAIN", form.begin, tokens)]
    else:
        # Space and brace are one terminal: the space alone would be the beginning of a text, once and for all.
        first = f"/{SPACE}{_escaped(form.before_name)}/"
        rules += [f"start: {thought}(plain | calls)", *plain, *_calls(tools, form, tokens, first)]
        return "\n".join(rules) + "\n"
    return "\n".join([*rules, *_calls(tools, form, tokens)]) + "\n"


def thought_grammar(thoughts: ThoughtForm, tokens: Mapping[str, int]) -> str:
    """``@body`` after the rest of a thought that the prompt has begun."""
    rules = _up_to("thought_end", _without(thoughts.end), thoughts.end, tokens)
    return "\n".join(["start: thought_end SPACE @body", f"SPACE: /{SPACE}/", *rules]) + "\n"


def arguments_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object whatever else is said of them."""
    parameters = function.get("parameters")
    return dict(NOTHING) if parameters is None else {**closed(without_idle(parameters)), "type": "object"}


def argument_schemas(tools: Tools) -> dict[str, str]:
    """The schema of every function's arguments, as JSON, by the path of the field that it comes from."""
    return {
        f"tools[{number}].function.parameters": json.dumps(arguments_schema(tool["function"]))
        for number, tool in enumerate(tools.definitions)
    }


def literals(schema: Any) -> Iterator[str]:
    """Every text of ``schema`` that an answer may have to hold letter by letter."""
    left = [schema]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, list):
            left.extend(found)
        elif isinstance(found, dict):
            yield from found
            left.extend(value for name, value in found.items() if name in DEFINED or name not in REMARKS)


def _calls(tools: Tools, form: CallForm, tokens: Mapping[str, int], first: str = "") -> list[str]:
    """``first``: what stands before the first name, if that is another text than before the others."""
    functions = [each["function"] for each in tools.definitions]
    if tools.function is not None:
        functions = [function for function in functions if function["name"] == tools.function]
    optional = f"({_literal(form.may_begin, tokens)})? " if form.may_begin else ""
    more = ""
    if tools.parallel and form.between is not None:
        more = f" ({_literal(form.between, tokens)} call)*"
    before = _literal(form.before_name, tokens)
    rules = [
        f"calls: {optional}{_literal(form.lead, tokens)} {first or before} named{more} {_literal(form.end, tokens)}",
        f"call: {before} named",
        f"named: function {_literal(form.after_arguments, tokens)}",
        "function: " + " | ".join(f"function_{number}" for number in range(len(functions))),
    ]
    for number, function in enumerate(functions):
        schema = json.dumps({**arguments_schema(function), "x-guidance": SPACING})
        rules.append(f"function_{number}: {_literal(function['name'] + form.after_name, tokens)} %json {schema}")
    return rules


def _without_calls(form: CallForm) -> str:
    if form.begin:
        return _without(form.begin)
    name = BLANK.join(_escaped(char) for char in form.before_name if not char.isspace())
    optional = f"|{_escaped(form.may_begin)}" if form.may_begin else ""
    return f"/(?s:.*)/ & ~/{BLANK}({name}{optional})(?s:.*)/"


def _up_to(name: str, text: str, mark: str, tokens: Mapping[str, int]) -> list[str]:
    """A rule for ``text``, a terminal or an expression, that ends with the first ``mark``."""
    lazy = "" if mark in tokens else "[lazy]"
    terminal = f"{name.upper()}_TEXT"
    return [f"{name}{lazy}: {terminal} {_literal(mark, tokens)}", f"{terminal}: {text}"]


def _without(mark: str) -> str:
    return f"/(?s:.*)/ & ~/(?s:.*){_escaped(mark)}(?s:.*)/"


def _escaped(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_ <>\":,]", lambda found: "\\" + found[0], text)


def _literal(text: str, tokens: Mapping[str, int]) -> str:
    """``text`` as terminals: tokens of the vocabulary by their numbers, all else as it is."""
    if not text:
        return ""
    known = sorted((mark for mark in tokens if mark in text), key=len, reverse=True)
    pieces = re.split("|".join(f"({re.escape(mark)})" for mark in known), text) if known else [text]
    return " ".join(f"<[{tokens[piece]}]>" if piece in tokens else json.dumps(piece) for piece in pieces if piece)
