"""Reads payloads from outside: strict, bounded, and every fault names its field."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, structs

from contract import strict_json
from contract.errors import BundleRefused, Fault, RequestInvalid
from contract.identifiers import check_bundle_name, check_version, is_identifier
from contract.mqtt.conversation import MAX_PICTURES, ImagePart, Message
from contract.mqtt.desired import MAX_DESIRED_BYTES, MAX_REVISION, Desired, Policy
from contract.mqtt.picture_references import with_digests
from contract.mqtt.pictures import picture_bytes, referenced_digest
from contract.mqtt.requests import MAX_REQUEST_BYTES, ControlRequest, GenerateRequest, ResponseFormat
from contract.mqtt.salvage import find_member
from contract.mqtt.tools import history_faults, tool_faults
from contract.mqtt.topics import NO_ID
from contract.mqtt.unsupported import unsupported
from contract.reasons import Reason
from contract.schema_faults import MAX_FAULTS, nearest, schema_faults
from contract.utc import parse_utc
from contract.windows import window_faults

_M = TypeVar("_M", bound=Struct)

_More = Callable[[_M, Collection[str]], Iterator[tuple[Reason, Fault]]]
"""Faults of a document that are no matter of types; the members that are there are named, sound or not."""

UPDATABLE = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("max_tokens", "max_completion_tokens", "stop"),
    }
)
"""What ``update`` may change while a request runs: sampling, and when it ends."""


def _read(payload: bytes, type_: type[_M], max_bytes: int, what: str, more: _More[_M], *, as_sent: bool = False) -> _M:
    """``payload`` as a ``type_``.

    Raises:
        BundleRefused: with all its faults; those of values that are of the wrong type already are left out.
    """
    found = strict_json.examine(payload, type_, max_bytes=max_bytes, what=what, as_sent=as_sent)
    if isinstance(found, strict_json.Examined):
        faults = list(found.faults)
        try:
            sound = msgspec.convert(found.sound, type_)
        except (msgspec.ValidationError, RecursionError):
            raise strict_json.refused(what, faults) from None
        faults += more(sound, found.members)
        raise strict_json.refused(what, faults[:MAX_FAULTS])
    faults = list(islice(more(found, _members(found)), MAX_FAULTS))
    if faults:
        reason, first = faults[0]
        rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        details = tuple(fault for _, fault in faults)
        raise BundleRefused(reason, first.message + rest, field=first.field, details=details)
    return found


def _members(found: Struct) -> list[str]:
    return [name for name in found.__struct_fields__ if getattr(found, name) is not UNSET]


def _read_request(payload: bytes, type_: type[_M], max_bytes: int, what: str, more: _More[_M]) -> _M:
    try:
        return _read(payload, type_, max_bytes, what, more, as_sent=True)
    except BundleRefused as refused:
        code = 413 if refused.reason is Reason.TOO_LARGE else 400
        raise RequestInvalid(refused.message, field=refused.field, code=code, details=refused.details) from refused


def _fault(message: str, field: str, suggestion: str | None = None) -> tuple[Reason, Fault]:
    return Reason.SCHEMA_INVALID, Fault(field, message, suggestion)


def parse_request(
    payload: bytes,
    correlation: bytes | None = None,
    reply_id: str | None = None,
    *,
    max_bytes: int = MAX_REQUEST_BYTES,
) -> tuple[str, GenerateRequest]:
    """Read a request; the id comes from the body or from MQTT 5 Correlation Data (they must agree), or where neither
    has one, is ``reply_id``, that of its Response Topic. ``max_bytes``: more than a message has where pictures that
    came apart were put in.

    Raises:
        RequestInvalid: ``field`` names the fault, ``details`` all of them.
    """
    heard = None if reply_id is None or not is_identifier(reply_id) else reply_id
    more = partial(_request_faults, correlation=correlation, reply_id=heard)
    request = _read_request(payload, GenerateRequest, max_bytes, "the request", more)
    if correlation is not None:
        return correlation.decode("ascii"), request
    return heard if heard is not None and request.id is UNSET else str(request.id), request


def _request_faults(
    request: GenerateRequest, members: Collection[str], correlation: bytes | None, reply_id: str | None
) -> Iterator[tuple[Reason, Fault]]:
    yield from _id_faults(request, members, correlation, reply_id)
    if ("messages" in members) == ("prompt" in members):
        yield _fault("give exactly one of messages and prompt", "messages")
    elif request.messages is not UNSET:
        yield from _part_faults(request.messages)
    if request.prompt is not UNSET and not request.prompt.strip():
        yield _fault("the prompt is empty", "prompt")
    form = request.response_format
    if form is not None:
        yield from _format_faults(form)
    for token in request.logit_bias:
        if not token.isascii() or not token.isdigit() or len(token) > 8:
            yield _fault("logit_bias keys are token ids", f"logit_bias.{token[:32]}")
    if request.num_beams > 1 and request.temperature is not UNSET and request.temperature > 0:
        yield _fault("beam search needs temperature 0", "num_beams")
    if request.max_tokens != request.token_limit is not UNSET and request.max_tokens is not UNSET:
        yield _fault("max_tokens says the same as max_completion_tokens: give one of them", "max_completion_tokens")
    for fault in chain(_tool_faults(request), unsupported(request)):
        yield Reason.SCHEMA_INVALID, fault


def _tool_faults(request: GenerateRequest) -> Iterator[Fault]:
    tools = [] if request.tools is UNSET else request.tools
    yield from tool_faults(tools, request.tool_choice)
    if request.messages is not UNSET:
        yield from history_faults(request.messages)
    if not tools or request.tool_choice == "none":
        return
    if request.prompt is not UNSET:
        yield Fault("tools", "a prompt goes to the model as it is, without tools: give messages")
    if request.response_format is not None and request.response_format.type != "text":
        yield Fault(
            "response_format", 'an answer has a format or may call tools: leave one out, or say tool_choice "none"'
        )
    if request.num_beams > 1:
        yield Fault("num_beams", "beam search calls no tools: leave num_beams out")


def _format_faults(form: ResponseFormat) -> Iterator[tuple[Reason, Fault]]:
    for kind in ("json_schema", "regex", "grammar", "choice"):
        if (getattr(form, kind) is not None) != (form.type == kind):
            yield _fault(f"{kind} goes with type {kind}", f"response_format.{kind}")


def _id_faults(
    request: GenerateRequest, members: Collection[str], correlation: bytes | None, reply_id: str | None
) -> Iterator[tuple[Reason, Fault]]:
    if correlation is None:
        if "id" not in members and reply_id is None:
            yield _fault("give an id (or MQTT 5 Correlation Data)", "id")
        return
    text = correlation.decode("ascii", "replace")
    if not is_identifier(text):
        yield _fault("Correlation Data must be 1 to 64 of A-Z a-z 0-9 _ . -", "id")
    elif request.id is not UNSET and request.id != text:
        yield _fault("id and Correlation Data differ", "id")


def _part_faults(messages: list[Message]) -> Iterator[tuple[Reason, Fault]]:
    """Something to read, and pictures that are some; their pixels are the worker's to look at."""
    pictures = 0
    has_text = False
    for number, message in enumerate(messages):
        has_text = has_text or bool(message.tool_calls)
        for index, part in enumerate(message.parts):
            if not isinstance(part, ImagePart):
                has_text = has_text or bool(part.text.strip())
                continue
            field = f"messages[{number}].content[{index}].image_url"
            pictures += 1
            if pictures > MAX_PICTURES:
                yield _fault(f"a request takes {MAX_PICTURES} pictures at most", field)
            elif message.role != "user":
                yield _fault("pictures belong to the role user", field)
            else:
                try:
                    if referenced_digest(part.image_url.url, f"{field}.url") is None:
                        picture_bytes(part.image_url.url, f"{field}.url")
                except RequestInvalid as refused:
                    yield _fault(refused.message, f"{field}.url")
    if not has_text and not pictures:
        yield _fault("every message is empty", "messages")


def salvage_request_id(payload: bytes, correlation: bytes | None = None, reply_id: str | None = None) -> str | None:
    """The id of a request that cannot be accepted, so that its error frame finds its way; None if there is none.

    Correlation Data go first: they come back with the answer. Then the body's ``id``; then ``reply_id``, which stands
    in a Response Topic that is the reply topic of this client and device.
    """
    if correlation is not None:
        text = correlation.decode("ascii", "replace")
        if is_identifier(text):
            return text
    found = find_member(payload, "id", is_identifier)
    return found or (reply_id if reply_id is not None and is_identifier(reply_id) else None)


def salvage_control(payload: bytes) -> tuple[str, str]:
    """``op`` and id of a control message that is not valid, so that its author hears of it; ``NO_ID`` for none."""
    op = find_member(payload, "op", lambda text: len(text) <= 64 and text.isprintable())
    return op or "", salvage_request_id(payload) or NO_ID


def salvage_revision(payload: bytes) -> str | None:
    """The revision of a desired document that is not valid, so that its author hears of it."""
    return find_member(payload, "revision", lambda text: len(text) <= MAX_REVISION and text.isprintable())


def request_fingerprint(request: GenerateRequest) -> str:
    """Tells a repeat from another request that reuses an id: equal for the same members with the same values, in
    whatever order, spacing or escapes they were written; a member that is left out counts as its default, and a picture
    is the same in the request and apart from it.
    """
    nameless = structs.replace(with_digests(request), id=UNSET)
    return hashlib.sha256(msgspec.json.encode(nameless, order="sorted")).hexdigest()


def parse_control(payload: bytes) -> ControlRequest:
    """Read a control message.

    Raises:
        RequestInvalid: ``field`` names the fault, ``details`` all of them.
    """
    return _read_request(payload, ControlRequest, MAX_DESIRED_BYTES, "the control message", _control_faults)


def _control_faults(control: ControlRequest, members: Collection[str]) -> Iterator[tuple[Reason, Fault]]:
    if "op" in members and (control.op == "update") != ("set" in members):
        yield _fault("set goes with op update", "set")
    elif control.set is not UNSET:
        yield from _change_faults(control.set)


def _change_faults(changes: dict[str, Any]) -> Iterator[tuple[Reason, Fault]]:
    """Faults of the ``set`` of an update: the rules are those of a request."""
    for name in changes:
        if name not in UPDATABLE:
            allowed = ", ".join(sorted(UPDATABLE))
            near = nearest(name, sorted(UPDATABLE))
            hint = "" if near is None else f"; did you mean `{near}`?"
            message = f"{name!r} cannot be changed while it runs; these can: {allowed}{hint}"
            yield _fault(message, f"set.{name}", near)
    known = {name: value for name, value in changes.items() if name in UPDATABLE}
    for fault in schema_faults(known, GenerateRequest, path="set"):
        yield Reason.SCHEMA_INVALID, fault._replace(message=f"the update is not valid: {fault.message}")


def parse_desired(payload: bytes) -> Desired | None:
    """Read a desired document; empty means: nothing is desired any more.

    Raises:
        BundleRefused: with a reason code and, where one is at fault, the field; ``details`` are all faults.
    """
    if not payload:
        return None
    return _read(payload, Desired, MAX_DESIRED_BYTES, "the desired document", _desired_faults)


def _desired_faults(desired: Desired, _members: Collection[str]) -> Iterator[tuple[Reason, Fault]]:
    for check, text, field in (
        (check_bundle_name, desired.bundle.name, "bundle.name"),
        (check_version, desired.bundle.version, "bundle.version"),
    ):
        try:
            check(text)
        except BundleRefused as refused:
            yield refused.reason, Fault(field, refused.message)
    if desired.policy is not UNSET:
        for fault in _time_faults(desired.policy):
            yield Reason.SCHEMA_INVALID, fault


def _time_faults(policy: Policy) -> Iterator[Fault]:
    if policy.not_before is not UNSET:
        try:
            parse_utc(policy.not_before)
        except ValueError as error:
            yield Fault("policy.not_before", str(error))
    several = isinstance(policy.window, list)
    for number, window in enumerate(policy.windows):
        yield from window_faults(window, f"policy.window[{number}]" if several else "policy.window")
