"""Every field of every message wrong in every way: it is accepted, or refused by name; nothing else ever happens."""

from __future__ import annotations

import json
import re
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
from contract.mqtt.desired import Desired
from contract.mqtt.requests import ControlRequest, GenerateRequest

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
        whole = base is int and isinstance(value, float) and value.is_integer()
        assert value is None or whole or isinstance(value, allowed)
        assert base is bool or not isinstance(value, bool)


@pytest.mark.parametrize("written", ["5.0", "5.00", "5e0", "0.5e1", "50E-1"])
def test_a_whole_number_may_be_written_as_a_float(written: str) -> None:
    """Number fields of Home Assistant's forms and of Lua give no other; it is the same request as with 5."""
    body = '{"id":"r","prompt":"a","max_tokens":%s,"n":2.0,"stream_options":{"include_usage":true}}'
    found = reading.parse_request((body % written).encode())[1]
    assert (found.max_tokens, type(found.max_tokens), found.n) == (5, int, 2)
    plain = reading.parse_request((body % "5").replace("2.0", "2").encode())[1]
    assert reading.request_fingerprint(found) == reading.request_fingerprint(plain)


@pytest.mark.parametrize("written", ["5.5", "1e300", "9007199254740994.0", '"5"', '"5.0"', "true"])
def test_what_is_no_whole_number_is_refused_by_name(written: str) -> None:
    with pytest.raises(RequestInvalid) as refused:
        reading.parse_request(b'{"id":"r","prompt":"a","max_tokens":%s}' % written.encode())
    assert refused.value.field == "max_tokens"


@pytest.mark.parametrize("wrong", ["a/b", "a b", "", "é", "x" * 65])
def test_what_an_id_is_made_of_is_said_in_words(wrong: str) -> None:
    with pytest.raises(RequestInvalid, match=re.escape("Expected 1 to 64 of A-Z a-z 0-9 _ . -")) as refused:
        reading.parse_request(json.dumps({"id": wrong, "prompt": "a"}).encode())
    assert refused.value.field == "id"


def test_the_error_of_a_number_as_id_goes_where_its_author_listens() -> None:
    assert reading.salvage_request_id(b'{"id":12345,"prompt":"a"}') == "12345"
    for payload in (
        b'{"id":1.5}',
        b'{"id":-1}',
        b'{"id":true}',
        b'{"id":null}',
        b'{"id":1e3}',
        b'{"id":' + b"1" * 65 + b"}",
    ):
        assert reading.salvage_request_id(payload) is None, payload


def test_a_comment_is_called_one() -> None:
    for comment in ("// hi\n", "/* hi */", "# hi\n"):
        with pytest.raises(RequestInvalid, match="there is a comment at position 15, and JSON has none"):
            reading.parse_request(b'{"prompt":"a", ' + comment.encode() + b'"id":"r"}')


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
