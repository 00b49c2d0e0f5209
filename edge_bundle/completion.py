"""Answers in the shape of OpenAI's chat completions: ``choices[0].message.content``, ``usage``. Pure."""

from __future__ import annotations

import time

import msgspec
from msgspec import UNSET, Struct

from contract.mqtt.messages import Timing, Usage
from edge_bundle.replies import Answer, Found, Piece
from edge_bundle.request_session import last_of


class ChatMessage(Struct, frozen=True):
    content: str
    role: str = "assistant"


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
    content: str


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


def to_completion(answer: Answer) -> Completion:
    """A request's end in OpenAI's shape.

    Raises:
        SourceUnavailable, EngineFailed, RequestInvalid: it ended with an error.
    """
    last = last_of(answer)
    logprobs = None
    if last.logprobs is not UNSET:
        logprobs = ChoiceLogprobs(msgspec.convert(last.logprobs, list[TokenLogprob]))
    choice = Choice(0, ChatMessage(last.text), last.finish_reason, logprobs)
    return Completion(answer.id, last.bundle, [choice], last.usage, last.timing, last.attempt, int(time.time()))


def to_chunk(request_id: str, found: Found) -> Chunk | None:
    """A piece of text in OpenAI's shape; the end has no text, but why it ended and what it cost. None for other news.

    Raises:
        SourceUnavailable, EngineFailed, RequestInvalid: it ended with an error.
    """
    if isinstance(found, Piece):
        return Chunk(request_id, [ChunkChoice(0, Delta(found.text))], found.restart)
    if isinstance(found, Answer):
        last = last_of(found)
        return Chunk(request_id, [ChunkChoice(0, Delta(""), last.finish_reason)], usage=last.usage)
    return None
