"""Functions, calls and results as the messages that a chat template reads. Pure.

A template that knows tools gets them as transformers hands them over. Where it writes a part of it only, or nothing,
the rest is put into the messages: calls as the model writes them, functions in words, results as turns of a role that
there is. In every string that came from outside control tokens must be broken already, since some are written here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agent.engine.interface import Tools
from agent.engine.tools.forms import CallForm

Turn = dict[str, Any]

SHORT_ID = 9
"""Letters and digits of an id that Mistral's templates take."""

WORDS = """\
You can call functions. These are all that there are, as JSON:
{functions}

To call a function, answer with a JSON object alone, in this form:
{{"name": "NAME", "{key}": {{"ARGUMENT": VALUE}}}}{several}
A result comes with the next message. If no function helps, answer in plain text."""

SEVERAL = "\nTo call several functions, write such objects below each other, each on a line of its own."
ONE = "\nCall one function at a time."

RESULT = "Result of {name}: {content}"


class Conversation:
    """What to render: ``turns``, and ``tools`` for the template's own use.

    ``suffix`` of a turn are control tokens and text that stand behind its content and must stay as they are.
    """

    def __init__(self, turns: list[Turn], tools: list[dict[str, Any]] | None) -> None:
        self.turns = turns
        self.tools = tools


def converse(
    turns: Sequence[Turn], tools: Tools | None, form: CallForm, *, has_system: Callable[[], bool]
) -> Conversation:
    """``turns`` and ``tools`` for a template of a model with ``form``.

    ``has_system`` says whether the template takes a system message; it is asked only where that matters.
    """
    offered = None if tools is None or tools.choice == "none" or not tools.definitions else tools
    written = [_own(turn, form) for turn in turns] if form.own_history else _in_words(turns, form)
    if offered is None:
        return Conversation(written, None)
    if form.definitions == "template":
        return Conversation(written, offered.definitions)
    if form.definitions == "message":
        functions = [each["function"] for each in offered.definitions]
        return Conversation(_with_system(written, "", {"tools": json.dumps(functions, ensure_ascii=False)}), None)
    words = WORDS.format(
        functions="\n".join(json.dumps(each["function"], ensure_ascii=False) for each in offered.definitions),
        key=form.argument_key,
        several=SEVERAL if offered.parallel and form.between is not None else ONE,
    )
    if has_system():
        return Conversation(_with_system(written, words, {}), None)
    return Conversation(_before_first_question(written, words), None)


def _own(turn: Turn, form: CallForm) -> Turn:
    """As transformers hands it to a template that writes calls itself."""
    found = dict(turn)
    if "tool_calls" in found:
        found["tool_calls"] = [
            {
                "id": short_id(call["id"]) if form.short_ids else call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in found["tool_calls"]
        ]
    if form.short_ids and "tool_call_id" in found:
        found["tool_call_id"] = short_id(found["tool_call_id"])
    return found


def _in_words(turns: Iterable[Turn], form: CallForm) -> list[Turn]:
    """Calls as text, results in a role that the template knows; neighbours that would be of one role are one turn."""
    found: list[Turn] = []
    for turn in turns:
        if turn["role"] == "tool":
            content = turn["content"]
            if form.result_role == "user":
                content = RESULT.format(name=turn.get("name", "the function"), content=content)
            written = {"role": form.result_role, "content": content}
        elif turn.get("tool_calls"):
            written = {**turn, "suffix": _calls(turn["tool_calls"], form)}
            del written["tool_calls"]
            if written["content"] and not form.begin:
                written["content"] += "\n"
        else:
            written = dict(turn)
        if found and form.result_role == "user" and written["role"] == "user" == found[-1]["role"]:
            found[-1] = {**found[-1], "content": f"{found[-1]['content']}\n\n{written['content']}"}
        else:
            found.append(written)
    return found


def _calls(calls: Sequence[Mapping[str, Any]], form: CallForm) -> str:
    """As the model would have written them."""
    each = [
        form.before_name
        + call["name"]
        + form.after_name
        + json.dumps(call["arguments"], ensure_ascii=False)
        + form.after_arguments
        for call in calls
    ]
    return form.begin + form.lead + (form.between or "\n").join(each) + form.end


def _with_system(turns: list[Turn], text: str, more: Mapping[str, Any]) -> list[Turn]:
    """``text`` and ``more`` in the system message, which is made if there is none."""
    if turns and turns[0]["role"] == "system":
        first, *rest = turns
        content = f"{first['content']}\n\n{text}" if first["content"] and text else first["content"] or text
        return [{**first, "content": content, **more}, *rest]
    return [{"role": "system", "content": text, **more}, *turns]


def _before_first_question(turns: list[Turn], text: str) -> list[Turn]:
    for number, turn in enumerate(turns):
        if turn["role"] == "user":
            return [*turns[:number], {**turn, "content": f"{text}\n\n{turn['content']}"}, *turns[number + 1 :]]
    return [{"role": "user", "content": text}, *turns]


def short_id(text: str) -> str:
    """An id of nine letters and digits for any id; such ones are themselves."""
    if len(text) == SHORT_ID and text.isascii() and text.isalnum():
        return text
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:SHORT_ID]
