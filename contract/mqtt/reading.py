"""Reads payloads from outside: strict, bounded, and every fault names its field."""

from __future__ import annotations

import hashlib
from typing import TypeVar

from msgspec import UNSET, Struct, UnsetType

from contract import strict_json
from contract.errors import BundleRefused, RequestInvalid
from contract.mqtt.messages import (
    MAX_DESIRED_BYTES,
    MAX_PICTURES,
    MAX_REQUEST_BYTES,
    ControlRequest,
    Desired,
    GenerateRequest,
    ImagePart,
    Message,
)
from contract.mqtt.pictures import picture_bytes
from contract.mqtt.topics import NO_ID
from contract.names import check_bundle_name, check_version, is_identifier
from contract.reasons import Reason

_M = TypeVar("_M", bound=Struct)


def _decode(payload: bytes, type_: type[_M], max_bytes: int, what: str) -> _M:
    try:
        return strict_json.decode(payload, type_, max_bytes=max_bytes, what=what)
    except BundleRefused as refused:
        code = 413 if refused.reason is Reason.TOO_LARGE else 400
        raise RequestInvalid(refused.message, field=refused.field, code=code) from refused


def parse_request(payload: bytes, correlation: bytes | None = None) -> tuple[str, GenerateRequest]:
    """Read a request; the id comes from the body or from MQTT 5 Correlation Data (they must agree).

    Raises:
        RequestInvalid: ``field`` names the fault.
    """
    request = _decode(payload, GenerateRequest, MAX_REQUEST_BYTES, "the request")
    request_id = _request_id(request.id, correlation)
    if (request.messages is UNSET) == (request.prompt is UNSET):
        raise RequestInvalid("give exactly one of messages and prompt", field="messages")
    if request.messages is not UNSET:
        _check_parts(request.messages)
    if request.prompt is not UNSET and not request.prompt.strip():
        raise RequestInvalid("the prompt is empty", field="prompt")
    form = request.response_format
    if form is not None and (form.json_schema is not None) != (form.type == "json_schema"):
        raise RequestInvalid("json_schema goes with type json_schema", field="response_format.json_schema")
    if form is not None and (form.regex is not None) != (form.type == "regex"):
        raise RequestInvalid("regex goes with type regex", field="response_format.regex")
    for token in request.logit_bias:
        if not token.isascii() or not token.isdigit() or len(token) > 8:
            raise RequestInvalid("logit_bias keys are token ids", field=f"logit_bias.{token[:32]}")
    if request.num_beams > 1 and request.temperature is not UNSET and request.temperature > 0:
        raise RequestInvalid("beam search needs temperature 0", field="num_beams")
    return request_id, request


def _check_parts(messages: list[Message]) -> None:
    """Something to read, and pictures that are some; their pixels are the worker's to look at.

    Raises:
        RequestInvalid: ``field`` names the part.
    """
    pictures = 0
    said = False
    for number, message in enumerate(messages):
        for place, part in enumerate(message.parts):
            if not isinstance(part, ImagePart):
                said = said or bool(part.text.strip())
                continue
            field = f"messages[{number}].content[{place}].image_url"
            pictures += 1
            if pictures > MAX_PICTURES:
                raise RequestInvalid(f"a request takes {MAX_PICTURES} pictures at most", field=field)
            if message.role != "user":
                raise RequestInvalid("pictures belong to the role user", field=field)
            picture_bytes(part.image_url.url, f"{field}.url")
    if not said and not pictures:
        raise RequestInvalid("every message is empty", field="messages")


def _request_id(in_body: str | UnsetType, correlation: bytes | None) -> str:
    if correlation is None:
        if in_body is UNSET:
            raise RequestInvalid("give an id (or MQTT 5 Correlation Data)", field="id")
        return in_body
    text = correlation.decode("ascii", "replace")
    if not is_identifier(text):
        raise RequestInvalid("Correlation Data must be 1 to 64 of A-Z a-z 0-9 _ . -", field="id")
    if in_body is not UNSET and in_body != text:
        raise RequestInvalid("id and Correlation Data differ", field="id")
    return text


def salvage_request_id(payload: bytes, correlation: bytes | None = None) -> str | None:
    """The id of a request that cannot be accepted, so that its error frame finds its way; None if there is none."""
    if correlation is not None:
        text = correlation.decode("ascii", "replace")
        return text if is_identifier(text) else None
    if len(payload) > MAX_REQUEST_BYTES:
        return None
    try:
        document = strict_json.loads(payload, max_bytes=MAX_REQUEST_BYTES, what="the request")
    except BundleRefused:
        return None
    found = document.get("id") if isinstance(document, dict) else None
    return found if isinstance(found, str) and is_identifier(found) else None


def salvage_control(payload: bytes) -> tuple[str, str]:
    """``op`` and id of a control message that is not valid, so that its author hears of it; ``NO_ID`` for none."""
    request_id = salvage_request_id(payload) or NO_ID
    try:
        document = strict_json.loads(payload, max_bytes=MAX_DESIRED_BYTES, what="the control message")
    except BundleRefused:
        return "", request_id
    found = document.get("op") if isinstance(document, dict) else None
    return (found[:64] if isinstance(found, str) else ""), request_id


def request_fingerprint(payload: bytes) -> str:
    """Tells a redelivery (equal bytes) from another request that reuses an id."""
    return hashlib.sha256(payload).hexdigest()


def parse_control(payload: bytes) -> ControlRequest:
    """Read a control message.

    Raises:
        RequestInvalid: ``field`` names the fault.
    """
    control = _decode(payload, ControlRequest, MAX_DESIRED_BYTES, "the control message")
    if (control.op == "update") != (control.set is not UNSET):
        raise RequestInvalid("set goes with op update", field="set")
    return control


def parse_desired(payload: bytes) -> Desired | None:
    """Read a desired document; empty means: nothing is desired any more.

    Raises:
        BundleRefused: with a reason code and, where one is at fault, the field.
    """
    if not payload:
        return None
    desired = strict_json.decode(payload, Desired, max_bytes=MAX_DESIRED_BYTES, what="the desired document")
    check_bundle_name(desired.bundle.name)
    check_version(desired.bundle.version)
    return desired
