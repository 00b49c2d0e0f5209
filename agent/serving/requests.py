"""From a request to work for the engine, and from a fault to its frame. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from agent.engine.interface import ChatTurn, Generation, Tools
from agent.serving.settings import ServingSettings
from contract.bundle.manifest import Behaviour, GenerationDefaults
from contract.errors import Fault, RequestInvalid
from contract.mqtt.answers import ErrorFrame
from contract.mqtt.conversation import ImagePart, ImageUrl, Message
from contract.mqtt.faults import MAX_FIELD, MAX_MESSAGE, ErrorBody, fault_details
from contract.mqtt.pictures import picture_bytes
from contract.mqtt.requests import GenerateRequest
from contract.mqtt.tools import ToolChoice, read_arguments
from contract.schema_faults import nearest

T = TypeVar("T")

UNBOUNDED = ServingSettings(default_max_tokens=0)

INSTRUCTIONS = ("system", "developer")
"""Roles of messages that take the place of the bundle's system prompt."""

NO_MODEL = "no_model"
UNLOADED = "unloaded"
STORE_READ_ONLY = "store_read_only"
QUEUE_FULL = "queue_full"
ENGINE_FAILED = "engine_failed"
INTERNAL_ERROR = "internal_error"
ENGINE_UNAVAILABLE = "engine_unavailable"
STORE_UNAVAILABLE = "store_unavailable"
INTERRUPTED = "interrupted"
ANSWER_TOO_LARGE = "answer_too_large"
ID_CONFLICT = "id_conflict"
EXPIRED = "expired"
UNKNOWN_REQUEST = "unknown_request"
MODEL_NOT_FOUND = "model_not_found"
PICTURE_MISSING = "picture_missing"


def to_generation(
    number: int,
    client: str,
    request: GenerateRequest,
    changes: Mapping[str, Any] | None = None,
    behaviour: Behaviour | None = None,
    *,
    settings: ServingSettings = UNBOUNDED,
    deadline_seconds: float | None = None,
) -> Generation:
    """The request as the engine sees it; ``number`` identifies it between agent and worker.

    ``changes`` were asked for since it came in, as :func:`read_changes` gave them. ``behaviour`` are the defaults of
    the bundle that is going to answer, ``settings`` the device's own; ``deadline_seconds`` are left for it.
    """
    signed = Behaviour() if behaviour is None else behaviour
    defaults = signed.generation
    grammar: tuple[str, str] | None = None
    form = request.response_format
    if form is not None and form.type == "regex":
        grammar = ("regex", form.regex or "")
    elif form is not None and form.grammar is not None:
        grammar = ("grammar", form.grammar)
    elif form is not None and form.choice is not None:
        grammar = ("calls", choice_grammar(form.choice))
    elif form is not None and form.type == "json_object":
        grammar = ("json_schema", '{"type":"object"}')
    elif form is not None and form.json_schema is not None:
        grammar = ("json_schema", msgspec.json.encode(form.json_schema.schema).decode())
    generation = Generation(
        request=number,
        client=client,
        messages=None if request.messages is UNSET else _turns(request.messages, signed.system_prompt),
        pictures=[picture_bytes(url.url, "messages") for url in _pictures(request)],
        details=[url.detail for url in _pictures(request)],
        prompt=None if request.prompt is UNSET else request.prompt,
        n=request.n,
        max_tokens=_first(request.token_limit, defaults.max_tokens, None),
        max_tokens_limit=_token_bound(request, defaults, settings),
        min_tokens=request.min_tokens,
        # Beam search is greedy, whatever the bundle's default for a single answer is.
        temperature=_first(request.temperature, defaults.temperature if request.num_beams == 1 else None, 0.0),
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=_first(request.top_k, defaults.top_k, 0),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        seed=None if request.seed is UNSET else request.seed,
        stops=request.stops if request.stop is not UNSET else tuple(defaults.stop or ()),
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        logit_bias={int(token): bias for token, bias in request.logit_bias.items()},
        grammar=grammar,
        tools=_tools(request, is_held=grammar is not None),
        num_beams=request.num_beams,
        presence_penalty=_first(request.presence_penalty, defaults.presence_penalty, 0.0),
        frequency_penalty=_first(request.frequency_penalty, defaults.frequency_penalty, 0.0),
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        no_repeat_ngram_size=_first(request.no_repeat_ngram_size, defaults.no_repeat_ngram_size, 0),
        adapter=request.adapter,
        reasoning_effort=None if request.reasoning_effort is UNSET else request.reasoning_effort,
        deadline_seconds=deadline_seconds,
    )
    return structs.replace(generation, **changes) if changes else generation


def choice_grammar(texts: Sequence[str]) -> str:
    """A grammar of which each of ``texts`` is a sentence, and nothing else."""
    return f"start: {' | '.join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))}"


def _token_bound(request: GenerateRequest, defaults: GenerationDefaults, settings: ServingSettings) -> int | None:
    """The most tokens of an answer: what bundle and device allow, and the device's default where nobody asked."""
    unasked = request.token_limit is UNSET and defaults.max_tokens is None
    bounds = [
        defaults.max_tokens_limit or 0, settings.max_tokens_limit, settings.default_max_tokens if unasked else 0
    ]  # fmt: skip
    return min((bound for bound in bounds if bound), default=None)


def model_fault(request: GenerateRequest, reference: str, settings: ServingSettings) -> Refusal | None:
    """Why ``request`` is not for the bundle ``reference`` (NAME@VERSION), if the device looks at that at all."""
    if not settings.check_model or request.model is UNSET:
        return None
    name = reference.partition("@")[0]
    known = [name, reference, *settings.model_aliases]
    if request.model in known:
        return None
    near = nearest(request.model, known)
    hint = "" if near is None else f"; did you mean `{near}`?"
    text = f"the model of this device is {', '.join(known)}{hint}"
    return Refusal(404, MODEL_NOT_FOUND, text, "model", details=(Fault("model", text, near),))


def _first(asked: T | UnsetType, signed: T | None, otherwise: T) -> T:
    """The request's value, else the bundle's."""
    if asked is not UNSET:
        return asked
    return otherwise if signed is None else signed


def _turns(messages: list[Message], system_prompt: str | None) -> list[ChatTurn]:
    """The messages, after the bundle's system prompt where they bring none of their own."""
    calls = [call for message in messages if message.tool_calls for call in message.tool_calls]
    names = {call.id: call.function.name for call in calls}
    turns = [_turn(message, names) for message in messages]
    if system_prompt is None or any(turn["role"] in INSTRUCTIONS for turn in turns):
        return turns
    return [{"role": "system", "content": system_prompt}, *turns]


def _tools(request: GenerateRequest, *, is_held: bool) -> Tools | None:
    """The functions of ``request``; none where it ``is_held`` to a format, which has no room for calls."""
    if request.tools is UNSET or not request.tools or is_held:
        return None
    choice = "auto" if request.tool_choice is UNSET else request.tool_choice
    return Tools(
        definitions=[msgspec.to_builtins(tool) for tool in request.tools],
        choice="required" if isinstance(choice, ToolChoice) else choice,
        function=choice.function.name if isinstance(choice, ToolChoice) else None,
        parallel=request.parallel_tool_calls is not False,
    )


def _turn(message: Message, names: Mapping[str, str]) -> ChatTurn:
    """``names``: of functions, by the ids of their calls."""
    parts = [None if isinstance(part, ImagePart) else part.text for part in message.parts]
    turn: ChatTurn = {
        "role": message.role,
        "content": parts if None in parts else "".join(part or "" for part in parts),
    }
    if message.name is not UNSET:
        turn["name"] = message.name
    if message.reasoning_content is not UNSET:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls is not UNSET and message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "name": call.function.name, "arguments": read_arguments(call.function.arguments) or {}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not UNSET:
        turn["tool_call_id"] = message.tool_call_id
        turn.setdefault("name", names.get(message.tool_call_id, ""))
    return turn


def _pictures(request: GenerateRequest) -> list[ImageUrl]:
    messages = [] if request.messages is UNSET else request.messages
    parts = (part for message in messages for part in message.parts)
    return [part.image_url for part in parts if isinstance(part, ImagePart)]


def read_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """The ``set`` of an update that :func:`contract.mqtt.reading.parse_control` took, as the engine sees it."""
    checked = msgspec.convert(changes, GenerateRequest)
    result = {name: getattr(checked, name) for name in changes if name not in ("stop", "max_completion_tokens")}
    if checked.token_limit is not UNSET:
        result["max_tokens"] = checked.token_limit
    if "stop" in changes:
        result["stops"] = checked.stops
    return result


class Refusal(Struct, frozen=True):
    """Why there is no answer: ``code`` follows HTTP, ``kind`` is stable for programs."""

    code: int
    kind: str
    message: str
    field: str | None = None
    retry_after_ms: int | None = None
    details: tuple[Fault, ...] = ()


def refusal_of(error: RequestInvalid) -> Refusal:
    """The client's fault as an error."""
    return Refusal(error.code, error.kind, error.message, error.field, details=error.details)


GONE = Refusal(410, EXPIRED, "this request was answered, and its answer is no longer kept", "id")


def error_body(refusal: Refusal) -> ErrorBody:
    """As the client reads it."""
    return ErrorBody(
        code=refusal.code,
        type=refusal.kind,
        message=refusal.message[:MAX_MESSAGE],
        field=UNSET if refusal.field is None else refusal.field[:MAX_FIELD],
        retry_after_ms=UNSET if refusal.retry_after_ms is None else refusal.retry_after_ms,
        details=fault_details(refusal.details),
    )


def error_frame(sequence: int, refusal: Refusal, attempt: int = 1) -> ErrorFrame:
    """A last frame without an answer."""
    return ErrorFrame(s=sequence, error=error_body(refusal), attempt=attempt)
