"""OpenAI's bodies, read strictly, as what a device is asked. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from contract import strict_json
from contract.errors import BundleRefused, RequestInvalid
from contract.mqtt.conversation import ImagePart
from contract.mqtt.reading import parse_request
from contract.mqtt.requests import MAX_REQUEST_BYTES, GenerateRequest
from contract.reasons import Reason
from fleet.gateway.affinity import beginnings_of_messages, beginnings_of_prompt

MAX_PROMPTS = 32
"""Of one request of ``/v1/completions``; langchain sends 20."""

DEFAULT_ESTIMATE = 256
"""Tokens that an answer is taken to have until it is there, where the request says no bound."""

_OURS = ("model", "stream", "stream_options")
"""Members that are the gateway's to answer to."""


class Asked(Struct, frozen=True, kw_only=True):
    """``bodies`` are what devices are asked, one for each prompt, without an id; ``needs`` capabilities.

    ``beginnings``: see :mod:`fleet.gateway.affinity`. ``estimate``: tokens that it will probably cost.
    """

    kind: Literal["chat", "text"]
    model: str
    bodies: list[dict[str, Any]]
    stream: bool
    include_usage: bool
    n: int
    beginnings: tuple[bytes, ...]
    needs: frozenset[str]
    estimate: int


def read_chat(payload: bytes) -> Asked:
    """The body of ``POST /v1/chat/completions``.

    Raises:
        RequestInvalid: it names the field.
    """
    request = _read(payload)
    if request.id is not UNSET:
        raise RequestInvalid("the gateway gives the id: leave id out", field="id")
    if request.messages is UNSET:
        raise RequestInvalid("a chat needs messages; a prompt goes to /v1/completions", field="messages")
    document = _without_nulls(msgspec.json.decode(payload))
    return _asked("chat", request, document, [_body_of(document)], len(payload))


def _read(payload: bytes) -> GenerateRequest:
    # The id is given when a device is asked; this one only stands for it.
    _, request = parse_request(payload, reply_id="gateway")
    return request


class _LegacyRequest(Struct, frozen=True, forbid_unknown_fields=False):
    """What ``/v1/completions`` has and ``/v1/chat/completions`` has not."""

    prompt: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: Annotated[int, Meta(ge=0, le=20)] | UnsetType = UNSET
    echo: bool = False
    suffix: str = ""
    best_of: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    n: Annotated[int, Meta(ge=1)] = 1


def read_completion(payload: bytes) -> Asked:
    """The body of ``POST /v1/completions``: a text, or several, that the model goes on with.

    Raises:
        RequestInvalid: it names the field.
    """
    legacy = _read_legacy(payload)
    document = _without_nulls(msgspec.json.decode(payload))
    for field in ("id", "messages", "tools", "top_logprobs"):
        if field in document:
            raise RequestInvalid(f"/v1/completions has no {field}: a chat goes to /v1/chat/completions", field=field)
    if legacy.echo:
        raise RequestInvalid("a device does not repeat the prompt: leave echo out", field="echo")
    if legacy.suffix:
        raise RequestInvalid("a device goes on with a text and fills no gap: leave suffix out", field="suffix")
    if legacy.best_of is not UNSET and legacy.best_of != legacy.n:
        raise RequestInvalid("all answers are given: leave best_of out, or say the same as n", field="best_of")
    for field in ("echo", "suffix", "best_of", "logprobs"):
        document.pop(field, None)
    if legacy.logprobs is not UNSET:
        document |= {"logprobs": True, "top_logprobs": legacy.logprobs}
    prompts = [legacy.prompt] if isinstance(legacy.prompt, str) else legacy.prompt
    bodies = [{**document, "prompt": prompt} for prompt in prompts]
    requests = [_read(msgspec.json.encode(body)) for body in bodies]
    return _asked("text", requests[0], document, [_body_of(body) for body in bodies], len(payload))


def _read_legacy(payload: bytes) -> _LegacyRequest:
    try:
        found = strict_json.examine(
            payload, _LegacyRequest, max_bytes=MAX_REQUEST_BYTES, what="the request", as_sent=True
        )
        if isinstance(found, strict_json.Examined):
            raise strict_json.refused("the request", found.faults)
    except BundleRefused as refused:
        code = 413 if refused.reason is Reason.TOO_LARGE else 400
        raise RequestInvalid(refused.message, field=refused.field, code=code, details=refused.details) from refused
    return found


def _without_nulls(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if value is not None}


def _body_of(document: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in document.items() if name not in _OURS}, "stream": _streams(document)}


def _streams(document: dict[str, Any]) -> bool:
    # Without a word OpenAI does not stream; a device does.
    return document.get("stream") is True


def _asked(
    kind: Literal["chat", "text"],
    request: GenerateRequest,
    document: dict[str, Any],
    bodies: list[dict[str, Any]],
    size: int,
) -> Asked:
    if request.model is UNSET or not request.model:
        raise RequestInvalid("name a model; GET /v1/models lists those that there are", field="model")
    stream = _streams(document)
    if "stream_options" in document and not stream:
        raise RequestInvalid("stream_options goes with stream: true", field="stream_options")
    # What else decides about the prompt that the model reads.
    salt = [request.model, document.get("prompt_cache_key"), document.get("tools"), document.get("adapter")]
    if kind == "chat":
        beginnings = beginnings_of_messages(document["messages"], salt)
    else:
        beginnings = beginnings_of_prompt(bodies[0]["prompt"], salt)
    limit = request.token_limit
    answer = DEFAULT_ESTIMATE if limit is UNSET else limit
    return Asked(
        kind=kind,
        model=request.model,
        bodies=bodies,
        stream=stream,
        include_usage=stream and (document.get("stream_options") or {}).get("include_usage") is True,
        n=request.n,
        beginnings=beginnings,
        needs=_needs(request),
        # Four bytes of English make a token.
        estimate=answer * request.n * len(bodies) + size // 4,
    )


def _needs(request: GenerateRequest) -> frozenset[str]:
    needs = set()
    messages = [] if request.messages is UNSET else request.messages
    if any(isinstance(part, ImagePart) for message in messages for part in message.parts):
        needs.add("vision")
    if request.tools is not UNSET and request.tools and request.tool_choice != "none":
        needs.add("tools")
    return frozenset(needs)
