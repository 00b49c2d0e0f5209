"""Every field of every message wrong in every way: it is accepted, or refused by name; nothing else ever happens."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import strict_json
from contract.errors import BundleRefused, RequestInvalid
from contract.mqtt import reading
from contract.mqtt.messages import ControlRequest, Desired, GenerateRequest

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["", " ", "\0", "text", "1", "-1", "a" * 5000, "🙂", "../..", "#", "+", "null"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)

EXAMPLES = 30
"""For each of 30 fields."""

FIELDS = [field.name for field in msgspec.structs.fields(GenerateRequest)]


def base_of(annotation: Any) -> type | None:
    """The one plain type that a scalar field takes."""
    if typing.get_origin(annotation) is typing.Annotated:
        return base_of(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        found = {base_of(part) for part in typing.get_args(annotation) if part is not msgspec.UnsetType}
        return found.pop() if len(found) == 1 else None
    return annotation if annotation in (int, float, bool, str) else None


SCALARS = {
    name: base
    for name, annotation in typing.get_type_hints(GenerateRequest, include_extras=True).items()
    if (base := base_of(annotation)) is not None
}


def read(**fields: Any) -> GenerateRequest | RequestInvalid:
    body = {"id": "r", **fields}
    if "prompt" not in fields and "messages" not in fields:
        body["prompt"] = "hello"
    try:
        return reading.parse_request(json.dumps(body).encode())[1]
    except RequestInvalid as refused:
        return refused


@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=EXAMPLES)
@given(value=JUNK)
def test_any_value_is_taken_or_the_field_is_named(name: str, value: Any) -> None:
    found = read(**{name: value})
    if isinstance(found, RequestInvalid):
        assert found.code in (400, 413)
        assert found.field is not None
        # Rules that tie two fields together name the one that breaks them.
        assert found.field.partition(".")[0].partition("[")[0] in {name, "messages", "num_beams"}, found.field
        assert found.message
        assert "\n" not in found.message


@pytest.mark.parametrize(("name", "base"), SCALARS.items())
@settings(max_examples=EXAMPLES)
@given(value=JUNK)
def test_no_type_is_bent_into_another(name: str, base: type, value: Any) -> None:
    found = read(**{name: value})
    if isinstance(found, GenerateRequest):
        allowed = (int, float) if base is float else (base,)
        assert value is None or isinstance(value, allowed)
        assert base is bool or not isinstance(value, bool)


@given(name=st.text(max_size=30), value=JUNK)
def test_unknown_fields_are_named(name: str, value: Any) -> None:
    if name not in FIELDS:
        found = read(**{name: value})
        assert isinstance(found, RequestInvalid)
        assert found.code == 400


@given(st.binary(max_size=300) | JUNK.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    for parse, error in (
        (reading.parse_request, RequestInvalid),
        (reading.parse_control, RequestInvalid),
        (reading.parse_desired, BundleRefused),
    ):
        try:
            parse(payload)  # type: ignore[operator]
        except (RequestInvalid, BundleRefused) as refused:
            assert isinstance(refused, error)
    assert reading.salvage_request_id(payload) is None or isinstance(reading.salvage_request_id(payload), str)
    op, request_id = reading.salvage_control(payload)
    assert isinstance(op, str)
    assert request_id


@given(st.sampled_from(["id", "op", "set", "more"]), JUNK)
def test_any_control_field_is_taken_or_named(name: str, value: Any) -> None:
    body = {"id": "r", "op": "update", "set": {"temperature": 1}, name: value}
    try:
        assert isinstance(reading.parse_control(json.dumps(body).encode()), ControlRequest)
    except RequestInvalid as refused:
        assert refused.field is not None


@given(st.sampled_from(["revision", "bundle", "source", "policy", "more"]), JUNK)
def test_any_desired_field_is_taken_or_refused(name: str, value: Any) -> None:
    body = {"revision": "r", "bundle": {"name": "toy", "version": "1.0.0"}, name: value}
    try:
        assert isinstance(reading.parse_desired(json.dumps(body).encode()), Desired)
    except BundleRefused as refused:
        assert refused.message


@pytest.mark.parametrize("number", ["9223372036854775808", "-1e999", "1e400", "NaN", "-Infinity", "01", "0x10"])
def test_numbers_that_json_or_we_do_not_know_are_refused(number: str) -> None:
    for name in ("seed", "temperature", "max_tokens"):
        with pytest.raises(RequestInvalid) as caught:
            reading.parse_request(f'{{"id": "r", "prompt": "x", "{name}": {number}}}'.encode())
        assert caught.value.code == 400


@pytest.mark.parametrize("depth", [10, 1000, 100_000])
def test_deep_nesting_is_refused_not_followed(depth: int) -> None:
    payload = b'{"id":"r","prompt":"x","response_format":' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(RequestInvalid):
        reading.parse_request(payload)
    with pytest.raises(BundleRefused):
        strict_json.loads(b"[" * 100_000, max_bytes=1 << 20, what="it")
