"""Answers in the shape of OpenAI's chat completions: ``choices[0].message.content``, ``usage``. Pure."""

from __future__ import annotations

import time
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct, structs

from contract.mqtt import answers
from contract.mqtt.answers import Timing, Usage
from contract.mqtt.tools import ToolCallDelta
from edge_bundle.replies import Answer, Found, Piece, choices_of
from edge_bundle.request_session import last_of

T = TypeVar("T")


class FunctionCall(Struct, frozen=True):
    """``arguments`` is a JSON object, as text."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    """A function of ``tools`` that the model wants called; the result goes back as a message of the role ``tool``."""

    id: str
    function: FunctionCall
    type: str = "function"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, read."""
        return msgspec.json.decode(self.function.arguments or b"{}", type=dict[str, Any])


class ChatMessage(Struct, frozen=True, omit_defaults=True):
    """``reasoning_content`` is what the model thought first, ``tool_calls`` what it wants called."""

    content: str
    role: str = "assistant"
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a message of a further request."""
        thought_out = structs.replace(self, reasoning_content=None)
        return {**msgspec.to_builtins(thought_out), "role": self.role}


class TopLogprob(Struct, frozen=True):
    """``id`` is the token's number, which OpenAI does not tell; ``bytes`` are its own, None if they are not known."""

    token: str
    id: int
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Struct, frozen=True):
    token: str
    id: int
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class ChoiceLogprobs(Struct, frozen=True):
    """One entry for each token that was generated, those of a stop text included."""

    content: list[TokenLogprob]


class Choice(Struct, frozen=True):
    """``finish_reason``: ``stop``, ``length``, and beyond OpenAI's own ``cancelled`` and ``deadline``."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChoiceLogprobs | None = None


class Completion(Struct, frozen=True):
    """A whole answer. ``model`` is the bundle that gave it; ``timing`` and ``attempt`` are the device's own."""

    id: str
    model: str
    choices: list[Choice]
    usage: Usage
    timing: Timing
    attempt: int
    created: int
    object: str = "chat.completion"


class Delta(Struct, frozen=True):
    """What is new; ``tool_calls`` as OpenAI streams them: ``index``, once ``id`` and the name, then more arguments."""

    content: str
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: str | None = None


class Chunk(Struct, frozen=True):
    """New text. ``restart``: what came before is void, since another attempt began. The last one has ``usage``."""

    id: str
    choices: list[ChunkChoice]
    restart: bool = False
    usage: Usage | None = None
    object: str = "chat.completion.chunk"


class ParsedCompletion(Completion, Generic[T], frozen=True, kw_only=True):
    """A whole answer, and what was read from it as the type that was asked for."""

    parsed: T


def to_completion(answer: Answer) -> Completion:
    """A request's end in OpenAI's shape.

    Raises:
        SourceUnavailable, EngineFailed, RequestInvalid: it ended with an error.
    """
    last = last_of(answer)
    choices = [_to_choice(each) for each in choices_of(last)]
    return Completion(answer.id, last.bundle, choices, last.usage, last.timing, last.attempt, int(time.time()))


def _to_choice(choice: answers.Choice) -> Choice:
    logprobs = None
    if choice.logprobs is not UNSET:
        logprobs = ChoiceLogprobs(msgspec.convert(choice.logprobs, list[TokenLogprob]))
    calls = [
        ToolCall(each.id, FunctionCall(each.function.name, each.function.arguments)) for each in choice.tool_calls or []
    ]
    message = ChatMessage(choice.text, reasoning_content=choice.reasoning_content or None, tool_calls=calls or None)
    return Choice(choice.index, message, choice.finish_reason, logprobs)


def to_chunk(request_id: str, found: Found) -> Chunk | None:
    """A piece of text in OpenAI's shape; the end has no text, but why it ended and what it cost. None for other news.

    Raises:
        SourceUnavailable, EngineFailed, RequestInvalid: it ended with an error.
    """
    if isinstance(found, Piece):
        delta = Delta(found.text, found.reasoning or None, list(found.tool_calls) or None)
        return Chunk(request_id, [ChunkChoice(found.index, delta)], found.restart)
    if isinstance(found, Answer):
        last = last_of(found)
        ends = [ChunkChoice(each.index, Delta(""), each.finish_reason) for each in choices_of(last)]
        return Chunk(request_id, ends, usage=last.usage)
    return None
