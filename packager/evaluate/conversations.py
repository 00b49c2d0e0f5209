"""Conversations in the forms that requests have, to see whether devices render a template as transformers does."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from contract.chat.template import ChatTemplate
from contract.errors import RequestInvalid

DAY = datetime.datetime(2026, 2, 3, 4, 5, 6)  # noqa: DTZ001 - as transformers tells it, local time
"""The day on which all of them are rendered: templates that tell the date must not differ at midnight."""

Rendering = tuple[str, bool, str | None]
"""The name of a conversation, whether an answer is to follow, and its text; None where the template refuses it."""


class Conversation(Struct, frozen=True):
    """What ``apply_chat_template`` takes."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = {}


_QUESTION = {"role": "user", "content": "Where is it?"}
_SYSTEM = {"role": "system", "content": "Be brief."}
_ANSWER = {"role": "assistant", "content": "Over there."}
_THOUGHT = {"role": "assistant", "content": "<think>\nHere or there?\n</think>\n\nOver there."}
_OTHER = {"role": "user", "content": "  And the\nother? "}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds a thing, <here> & 'there'.",
            "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
        },
    }
]
_CALL = {"id": "c4ll00001", "type": "function", "function": {"name": "find", "arguments": {"what": "é"}}}

CONVERSATIONS: dict[str, Conversation] = {
    "one question": Conversation([_QUESTION]),
    "a system message": Conversation([_SYSTEM, _QUESTION]),
    "an empty system message": Conversation([{"role": "system", "content": ""}, _QUESTION]),
    "several turns": Conversation([_QUESTION, _ANSWER, _OTHER]),
    "several turns after a system message": Conversation([_SYSTEM, _QUESTION, _ANSWER, _OTHER]),
    "a thought in the history": Conversation([_QUESTION, _THOUGHT, {"role": "user", "content": "And the other?"}]),
    "a thought in the last answer": Conversation([_QUESTION, _THOUGHT]),
    "a thought beside an answer": Conversation([_QUESTION, {**_ANSWER, "reasoning_content": "Hm."}, _OTHER]),
    "thinking turned off": Conversation([_SYSTEM, _QUESTION], variables={"enable_thinking": False}),
    "thinking turned on": Conversation([_QUESTION], variables={"enable_thinking": True, "thinking": True}),
    "a system message that turns thinking off": Conversation(
        [{"role": "system", "content": "Be kind. /no_think"}, _QUESTION]
    ),
    "tools": Conversation([_SYSTEM, _QUESTION], tools=_TOOLS),
    "a tool called": Conversation(
        [_QUESTION, {"role": "assistant", "tool_calls": [_CALL]}, {"role": "tool", "content": "21.5"}], tools=_TOOLS
    ),
    "turns that do not alternate": Conversation([_QUESTION, _OTHER]),
}


def render(template: ChatTemplate, name: str, asks: bool) -> str | None:
    """What ``template`` makes of a conversation; None where it refuses it."""
    given = CONVERSATIONS[name]
    try:
        return template.render(given.messages, tools=given.tools, add_generation_prompt=asks, variables=given.variables)
    except RequestInvalid:
        return None


def differing(template: ChatTemplate, renderings: Iterable[Rendering]) -> list[str]:
    """Names of the conversations of which ``template`` makes another text than it is in ``renderings``."""
    found = (name for name, asks, text in renderings if render(template, name, asks) != text)
    return list(dict.fromkeys(found))
