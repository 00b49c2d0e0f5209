"""What a device answers to a request: frames, the last one, or why there is none."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from contract.mqtt.faults import ErrorBody
from contract.mqtt.tools import ToolCall, ToolCallDelta


class Usage(Struct, frozen=True):
    """Token counts; ``cached_tokens`` of the prompt came from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0


class Timing(Struct, frozen=True, kw_only=True):
    """Milliseconds: waiting, from acceptance to the first token if there was one, in all."""

    queue_ms: float
    first_token_ms: float | UnsetType = UNSET
    total_ms: float


class Frame(Struct, frozen=True, omit_defaults=True):
    """A piece of the answer: ``s`` counts from 0, ``d`` is new text, ``n`` the completion tokens so far;
    ``reasoning_content`` is more of a thought, ``tool_calls`` more of calls.

    ``index`` says of which answer, where a request asked for several; ``s`` counts the frames of all of them. The first
    frame with text adds the bundle (``NAME@VERSION``), the time in the queue and the place it had there.
    Frames to a request that waits have no text, its place now, and in how many milliseconds it may begin.
    """

    s: int
    d: str
    n: int
    index: int | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    bundle: str | UnsetType = UNSET
    queue_ms: float | UnsetType = UNSET
    position: int | UnsetType = UNSET
    estimate_ms: float | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "deadline"]


class Choice(Struct, frozen=True):
    """One of several answers to a request."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: list[dict[str, Any]] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class LastFrame(Struct, frozen=True):
    """The whole answer again, so that a lost frame costs nothing.

    ``choices`` are there where a request asked for several answers (``n``); the members beside them that say what an
    answer is are then those of the first, and ``usage`` counts all of them.
    """

    s: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    attempt: int
    bundle: str
    logprobs: list[dict[str, Any]] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    choices: list[Choice] | UnsetType = UNSET


class ErrorFrame(Struct, frozen=True):
    """A last frame that says why there is no (more) answer."""

    s: int
    error: ErrorBody
    attempt: int = 1


class ControlFault(Struct, frozen=True):
    """``op`` as it was sent, as far as it can be read."""

    op: str
    error: ErrorBody


class ControlRefused(Struct, frozen=True):
    """A control message did nothing. No last frame: the request that it names, if there is one, goes on."""

    control: ControlFault
