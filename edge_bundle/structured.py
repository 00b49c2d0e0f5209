"""``parse=Type``: a type becomes a JSON schema that the answer is held to, and the answer a value of it. Pure."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import structs

from contract.errors import EngineFailed, RequestInvalid, SourceUnavailable, UsageError
from edge_bundle.completion import Completion, ParsedCompletion

T = TypeVar("T")


def response_format(type_: Any) -> dict[str, Any]:
    """The ``response_format`` of a request whose answer is to be read as ``type_``.

    Raises:
        UsageError: no JSON schema says what it is.
    """
    try:
        schema = msgspec.json.schema(type_)
    except (TypeError, RuntimeError) as error:
        raise UsageError(f"parse={type_!r} has no JSON schema: {error}") from error
    name = getattr(type_, "__name__", "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": _closed(schema)}}


def _closed(schema: Any) -> Any:
    """``schema`` without members that the type does not have: a model would go on inventing them."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: value if key in ("enum", "const", "default") else _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def parse_answer(done: Completion, type_: type[T]) -> ParsedCompletion[T]:
    """``done`` with its text read as ``type_``.

    Raises:
        RequestInvalid: it broke off at ``max_tokens``, or calls tools. SourceUnavailable: it was cancelled or late.
        EngineFailed: it is whole, and something else.
    """
    choice = done.choices[0]
    name = getattr(type_, "__name__", repr(type_))
    if choice.message.tool_calls and not choice.message.content:
        raise RequestInvalid("the model called tools instead of answering: leave tools or parse out", field="tools")
    try:
        parsed = msgspec.json.decode(choice.message.content, type=type_)
    except msgspec.MsgspecError as error:
        if choice.finish_reason == "length":
            text = f"the answer broke off at max_tokens before it was a whole {name}: allow more of them"
            raise RequestInvalid(text, field="max_tokens") from error
        if choice.finish_reason in ("cancelled", "deadline"):
            raise SourceUnavailable(f"the answer was {choice.finish_reason} before it was a whole {name}") from error
        raise EngineFailed(f"the answer is no {name}: {error}") from error
    return ParsedCompletion(**structs.asdict(done), parsed=parsed)
