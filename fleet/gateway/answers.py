"""A device's answer as OpenAI's objects and chunks. Pure: id and time are handed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from contract.mqtt.answers import Usage
from edge_bundle.completion import Choice, Completion, TokenLogprob, to_completion
from edge_bundle.presence import Device
from edge_bundle.replies import Answer, Piece
from fleet.gateway.models import reference

_REASONS = {"deadline": "length", "cancelled": "length"}
"""OpenAI has no word for an answer that was broken off: like ``length`` it is not whole."""

DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"
"""A comment of server-sent events, which keeps proxies from closing a silent connection."""


def finish_reason(reason: str) -> str:
    """One of OpenAI's."""
    return _REASONS.get(reason, reason)


def fingerprint(device: Device | None) -> str:
    """``system_fingerprint``: the same as long as it is the same bundle that answers."""
    if device is None or device.bundle is None:
        return "fp_unknown"
    return f"fp_{device.bundle.digest[:12]}"


def event(document: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def usage_of(usages: Sequence[Usage]) -> dict[str, Any]:
    """OpenAI's ``usage``, of all prompts together."""
    prompt, answer = sum(each.prompt_tokens for each in usages), sum(each.completion_tokens for each in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in usages)},
    }


def _token(found: TokenLogprob) -> dict[str, Any]:
    top = [{"token": each.token, "logprob": each.logprob, "bytes": each.bytes} for each in found.top_logprobs]
    return {"token": found.token, "logprob": found.logprob, "bytes": found.bytes, "top_logprobs": top}


def _logprobs(choice: Choice) -> dict[str, Any] | None:
    if choice.logprobs is None:
        return None
    return {"content": [_token(each) for each in choice.logprobs.content], "refusal": None}


def _text_logprobs(choice: Choice) -> dict[str, Any] | None:
    """The form of ``/v1/completions``."""
    if choice.logprobs is None:
        return None
    content = choice.logprobs.content
    offsets, at = [], 0
    for each in content:
        offsets.append(at)
        at += len(each.token)
    return {
        "tokens": [each.token for each in content],
        "token_logprobs": [each.logprob for each in content],
        "top_logprobs": [{top.token: top.logprob for top in each.top_logprobs} for each in content],
        "text_offset": offsets,
    }


def chat_completion(answer: Answer, *, id: str, created: int, fingerprint: str) -> dict[str, Any]:
    """The whole answer to ``/v1/chat/completions``."""
    done = to_completion(answer)
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": done.model,
        "choices": [_chat_choice(each) for each in done.choices],
        "usage": usage_of([done.usage]),
        "system_fingerprint": fingerprint,
    }


def _chat_choice(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.message.content, "refusal": None}
    if choice.message.reasoning_content:
        message["reasoning_content"] = choice.message.reasoning_content
    if choice.message.tool_calls:
        message["tool_calls"] = msgspec.to_builtins(choice.message.tool_calls)
        message["content"] = choice.message.content or None
    return {
        "index": choice.index,
        "message": message,
        "logprobs": _logprobs(choice),
        "finish_reason": finish_reason(choice.finish_reason),
    }


def text_completion(answers: Sequence[Answer], *, id: str, created: int, fingerprint: str) -> dict[str, Any]:
    """The whole answer to ``/v1/completions``: that of the first prompt first."""
    done = [to_completion(each) for each in answers]
    choices = []
    for number, each in enumerate(done):
        for choice in each.choices:
            choices.append(_text_choice(choice, number * len(each.choices) + choice.index))
    return {
        "id": id,
        "object": "text_completion",
        "created": created,
        "model": done[0].model,
        "choices": choices,
        "usage": usage_of([each.usage for each in done]),
        "system_fingerprint": fingerprint,
    }


def _text_choice(choice: Choice, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "text": choice.message.content,
        "logprobs": _text_logprobs(choice),
        "finish_reason": finish_reason(choice.finish_reason),
    }


class Chunks:
    """The chunks of one answer as OpenAI streams them: each has ``id``, ``created``, ``model`` and a fingerprint, the
    first of a chat its role, the last its finish reason, and one without choices follows with the usage if that was
    asked for. Log probabilities come with the finish reason, all at once.
    """

    def __init__(
        self, *, chat: bool, id: str, created: int, device: Device | None, include_usage: bool, n: int = 1
    ) -> None:
        self._chat = chat
        self._id = id
        self._created = created
        self._fingerprint = fingerprint(device)
        self._model = "" if device is None else reference(device)
        self._include_usage = include_usage
        self._n = n
        self._begun: set[int] = set()
        self._usages: list[Usage] = []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }
        if self._include_usage:
            chunk["usage"] = None
        return chunk

    def _choice(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        content = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}

    def _begin(self, index: int) -> list[dict[str, Any]]:
        if index in self._begun:
            return []
        self._begun.add(index)
        if not self._chat:
            return []
        return [self._chunk([self._choice(index, {"role": "assistant", "content": "", "refusal": None})])]

    def piece(self, piece: Piece, prompt: int = 0) -> list[dict[str, Any]]:
        """New text of the answer to prompt number ``prompt``."""
        self._model = piece.bundle or self._model
        index = prompt * self._n + piece.index
        delta: dict[str, Any] = {}
        if piece.text:
            delta["content"] = piece.text
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.tool_calls:
            delta["tool_calls"] = msgspec.to_builtins(list(piece.tool_calls))
        found = self._begin(index)
        return [*found, self._chunk([self._choice(index, delta)])] if delta else found

    def end(self, answer: Answer, prompt: int = 0) -> list[dict[str, Any]]:
        """Why the answers to prompt number ``prompt`` ended."""
        done: Completion = to_completion(answer)
        self._model = done.model
        self._usages.append(done.usage)
        found = []
        for choice in done.choices:
            index = prompt * self._n + choice.index
            logprobs = _logprobs(choice) if self._chat else _text_logprobs(choice)
            found += self._begin(index)
            found.append(self._chunk([self._choice(index, {}, finish_reason(choice.finish_reason), logprobs)]))
        return found

    def usage(self) -> list[dict[str, Any]]:
        """After the last of them: what it cost, if that was asked for."""
        if not self._include_usage:
            return []
        return [{**self._chunk([]), "usage": usage_of(self._usages)}]
