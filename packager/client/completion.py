"""Answers in the shape of OpenAI's chat completions: ``choices[0].message.content``, ``usage``. Pure."""

from __future__ import annotations

import time
from typing import Any

from msgspec import UNSET, Struct, structs

from contract.mqtt.messages import ErrorBody, LastFrame, Timing, Usage


class ChatMessage(Struct, frozen=True):
    content: str
    role: str = "assistant"


class Choice(Struct, frozen=True):
    """``finish_reason``: ``stop``, ``length``, and beyond OpenAI's own ``cancelled`` and ``deadline``."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: list[dict[str, Any]] | None = None


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


def to_completion(request_id: str, last: LastFrame) -> Completion:
    """The last frame of a request in OpenAI's shape."""
    logprobs = None if last.logprobs is UNSET else last.logprobs
    choice = Choice(0, ChatMessage(last.text), last.finish_reason, logprobs)
    return Completion(request_id, last.bundle, [choice], last.usage, last.timing, last.attempt, int(time.time()))


def to_chunk(request_id: str, text: str, *, restart: bool = False) -> Chunk:
    """A piece of text in OpenAI's shape."""
    return Chunk(request_id, [ChunkChoice(0, Delta(text))], restart)


def last_chunk(request_id: str, last: LastFrame) -> Chunk:
    """The end of a stream: no text, why it ended, and what it cost."""
    return Chunk(request_id, [ChunkChoice(0, Delta(""), last.finish_reason)], usage=last.usage)


def describe_error(error: ErrorBody) -> dict[str, Any]:
    """As OpenAI writes errors: ``{"error": {"message", "type", "param", "code"}}``."""
    fields = structs.asdict(error)
    return {"error": {"message": fields["message"], "type": fields["type"], "code": fields["code"],
                      "param": None if error.field is UNSET else error.field}}  # fmt: skip
