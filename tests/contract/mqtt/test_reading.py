"""Requests, control messages and desired documents as they come from outside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from contract.errors import BundleRefused, RequestInvalid
from contract.mqtt import reading
from contract.mqtt.conversation import ImagePart, TextPart
from contract.mqtt.pictures import picture_bytes, picture_url
from contract.mqtt.requests import MAX_REQUEST_BYTES, GenerateRequest
from contract.reasons import Reason


def request(**fields: Any) -> bytes:
    return json.dumps({"id": "r1", "prompt": "hello", **fields}).encode()


def test_a_request_has_the_documented_defaults() -> None:
    request_id, parsed = reading.parse_request(request())
    assert request_id == "r1"
    assert (parsed.stream, parsed.priority) == (True, 4)
    # Left to the bundle; what holds where it says nothing: tests/agent/serving/test_behaviour.py.
    assert {parsed.temperature, parsed.top_p, parsed.top_k, parsed.max_tokens, parsed.stop} == {UNSET}
    assert parsed.stops == ()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"temprature": 1}, "temprature"),
        ({"id": "r1\n"}, "id"),
        ({"supersede_key": "k\n"}, "supersede_key"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"priority": 10}, "priority"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"num_beams": 4, "temperature": 1}, "num_beams"),
        ({"response_format": {"type": "regex"}}, "response_format.regex"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema"),
        ({"id": "a/b"}, "id"),
        ({"id": 7}, "id"),
    ],
)
def test_every_wrong_field_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        reading.parse_request(request(**fields))
    assert caught.value.field == field
    assert caught.value.code == 400


PNG = picture_url(b"\x89PNG\r\n\x1a\n and so on")


def chat(*parts: Any, role: str = "user") -> bytes:
    return json.dumps({"id": "r1", "messages": [{"role": role, "content": list(parts)}]}).encode()


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def test_texts_and_pictures_may_stand_in_a_message() -> None:
    _, found = reading.parse_request(chat(text_part("What is this?"), image_part(PNG, detail="auto")))
    assert not isinstance(found.messages, UnsetType)
    text, picture = found.messages[0].parts
    assert isinstance(text, TextPart)
    assert text.text == "What is this?"
    assert isinstance(picture, ImagePart)
    assert picture_bytes(picture.image_url.url, "url") == b"\x89PNG\r\n\x1a\n and so on"


def test_a_picture_alone_is_something_to_ask() -> None:
    reading.parse_request(chat(image_part(PNG)))


@pytest.mark.parametrize(
    ("payload", "field", "words"),
    [
        (chat(image_part("https://example.org/cat.png")), "messages[0].content[0].image_url.url", "fetches nothing"),
        (chat(image_part("file:///etc/shadow")), "messages[0].content[0].image_url.url", "fetches nothing"),
        (chat(image_part("data:image/png;base64")), "messages[0].content[0].image_url.url", "fetches nothing"),
        (chat(image_part("data:,")), "messages[0].content[0].image_url.url", "image/png or image/jpeg"),
        (chat(image_part("data:image/gif;base64,R0lG")), "messages[0].content[0].image_url.url", "image/png or"),
        (chat(image_part("data:image/png,abc")), "messages[0].content[0].image_url.url", "in base64"),
        (chat(image_part("data:image/png;base64,a?")), "messages[0].content[0].image_url.url", "not base64"),
        (chat(image_part("data:image/png;base64,é")), "messages[0].content[0].image_url.url", "not base64"),
        (chat(image_part(PNG.replace("png", "jpeg"))), "messages[0].content[0].image_url.url", "no image/jpeg"),
        (chat(image_part("data:image/png;base64,")), "messages[0].content[0].image_url.url", "no image/png"),
        (chat(image_part(PNG, detail="ultra")), "messages[0].content[0].image_url.detail", "ultra"),
        (chat(image_part(PNG), role="system"), "messages[0].content[0].image_url", "role user"),
        (chat(text_part("x"), *[image_part(PNG)] * 9), "messages[0].content[9].image_url", "8 pictures"),
        (chat(text_part(" "), text_part("")), "messages", "empty"),
        (chat(), "messages[0].content", "length"),
        (chat(*[text_part("x")] * 65), "messages[0].content", "length"),
        (chat({"type": "input_audio", "input_audio": {}}), "messages[0].content[0].type", "input_audio"),
        (chat({"text": "x"}), "messages[0].content[0].type", "type"),
        (chat("x"), "messages[0].content[0]", "object"),
        (chat({**text_part("x"), "more": 1}), "messages[0].content[0].more", "more"),
    ],
)  # fmt: skip
def test_parts_of_a_message_are_held_to_what_is_taken(payload: bytes, field: str, words: str) -> None:
    with pytest.raises(RequestInvalid, match=words) as caught:
        reading.parse_request(payload)
    assert caught.value.field == field
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b'{"id":"a"}', "messages"),
        (b'{"id":"a","messages":[]}', "messages"),
        (b'{"id":"a","messages":[{"role":"user","content":"  "}]}', "messages"),
        (b'{"id":"a","messages":[{"role":"root","content":"x"}]}', "messages[0].role"),
        (b'{"id":"a","messages":[{"role":"user","content":"x","nick":"y"}]}', "messages[0].nick"),
        (b'{"prompt":"x"}', "id"),
        (b"not json", None),
        (b"[]", None),
        (b"", None),
    ],
)
def test_requests_without_their_essentials_are_refused(payload: bytes, field: str | None) -> None:
    with pytest.raises(RequestInvalid) as caught:
        reading.parse_request(payload)
    assert caught.value.field == field


def test_an_oversized_request_says_413() -> None:
    with pytest.raises(RequestInvalid) as caught:
        reading.parse_request(request(prompt="x" * MAX_REQUEST_BYTES))
    assert caught.value.code == 413


def test_correlation_data_is_the_id_and_must_agree_with_the_body() -> None:
    assert reading.parse_request(b'{"prompt":"x"}', b"c-1")[0] == "c-1"
    assert reading.parse_request(request(), b"r1")[0] == "r1"
    for correlation in (b"other", b"\xff\xfe", b"", b"a/b"):
        with pytest.raises(RequestInvalid) as caught:
            reading.parse_request(request(), correlation)
        assert caught.value.field == "id"


@pytest.mark.parametrize(
    ("payload", "correlation", "found"),
    [
        (b'{"id":"a","nonsense":1}', None, "a"),
        (b'{"id":"a"', None, "a"),
        (b'{"id":"a', None, None),
        (b'{"x":{"id":"a"}}', None, None),
        (b'{"x":["id",":"],"id":"a/b"}', None, None),
        (b'{"x":"id","y":"a"', None, None),
        (b'"id":"a"', None, None),
        (b'{"id":5}', None, "5"),
        (b"junk", b"c1", "c1"),
        (b"junk", b"\xff", None),
        (b"[]", None, None),
    ],
)
def test_the_id_of_a_bad_request_is_saved_if_it_can_be(
    payload: bytes, correlation: bytes | None, found: str | None
) -> None:
    assert reading.salvage_request_id(payload, correlation) == found


@given(st.binary(max_size=300), st.none() | st.binary(max_size=70))
def test_random_requests_are_read_or_refused_never_anything_else(payload: bytes, correlation: bytes | None) -> None:
    try:
        request_id, _ = reading.parse_request(payload, correlation)
    except RequestInvalid as refused:
        assert refused.message
    else:
        assert request_id
    reading.salvage_request_id(payload, correlation)


json_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
request_fields = st.sampled_from([field for field in GenerateRequest.__struct_fields__ if field != "id"])


@given(st.dictionaries(request_fields, json_junk, max_size=4))
def test_any_value_in_any_field_is_read_or_refused_never_anything_else(fields: dict[str, Any]) -> None:
    payload = json.dumps({"id": "r1", **fields}).encode()
    try:
        _, parsed = reading.parse_request(payload)
    except RequestInvalid as refused:
        assert refused.code in (400, 413)
    else:
        assert parsed.prompt is not UNSET or parsed.messages is not UNSET


def test_control_messages_name_their_faults() -> None:
    assert reading.parse_control(b'{"id":"r1","op":"cancel"}').op == "cancel"
    for payload, field in ((b'{"id":"r1","op":"kill"}', "op"), (b'{"id":"r1","op":"update"}', "set"), (b"{}", "id")):
        with pytest.raises(RequestInvalid) as caught:
            reading.parse_control(payload)
        assert caught.value.field == field


def test_desired_is_read_and_empty_clears_it() -> None:
    assert reading.parse_desired(b"") is None
    desired = reading.parse_desired(b'{"revision":"7","bundle":{"name":"tiny","version":"1.0.0"}}')
    assert desired is not None
    assert desired.revision == "7"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"nonsense", Reason.NOT_JSON),
        (b"null", Reason.SCHEMA_INVALID),
        (b'{"revision":1,"bundle":{"name":"a","version":"1.0.0"}}', Reason.SCHEMA_INVALID),
        (b'{"revision":"1","bundle":{"name":"../a","version":"1.0.0"}}', Reason.UNSAFE_NAME),
        (b'{"revision":"1","bundle":{"name":"a","version":"latest"}}', Reason.UNSAFE_NAME),
        (b'{"revision":"1","bundle":{"name":"a","version":"1.0.0"},"url":"http://x"}', Reason.SCHEMA_INVALID),
        (b'{"revision":"1","revision":"2","bundle":{"name":"a","version":"1.0.0"}}', Reason.DUPLICATE_KEY),
        (b" " * (1 << 15), Reason.TOO_LARGE),
    ],
)
def test_a_bad_desired_document_is_refused_with_its_reason(payload: bytes, reason: Reason) -> None:
    with pytest.raises(BundleRefused) as caught:
        reading.parse_desired(payload)
    assert caught.value.reason is reason


def policy(**fields: object) -> bytes:
    bundle = {"name": "tiny", "version": "1.0.0"}
    return json.dumps({"revision": "7", "bundle": bundle, "policy": fields}).encode()


WINDOW = {"from": "22:00", "until": "05:00", "zone": "Europe/Oslo"}


@pytest.mark.parametrize(
    ("fields", "windows"),
    [({"window": WINDOW}, 1), ({"window": [WINDOW, {**WINDOW, "days": ["sat"]}]}, 2), ({"prefetch": True}, 0)],
)
def test_a_policy_may_say_when(fields: dict[str, object], windows: int) -> None:
    desired = reading.parse_desired(policy(not_before="2026-12-01T02:00:00Z", **fields))
    assert desired is not None and desired.policy is not UNSET
    assert len(desired.policy.windows) == windows
    assert desired.policy.not_before == "2026-12-01T02:00:00Z"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"not_before": "tomorrow"}, "policy.not_before", "write it as 2026-12-01T02:00:00Z"),
        ({"not_before": "2026-12-01T02:00:00"}, "policy.not_before", "in UTC"),
        ({"not_before": "2026-12-01T02:00:00+01:00"}, "policy.not_before", "in UTC"),
        ({"not_before": "2026-13-01T02:00:00Z"}, "policy.not_before", "is not a time"),
        ({"not_before": "9999-12-31T23:59:59Z"}, "policy.not_before", "is not a time"),
        ({"not_before": 1796090400}, "policy.not_before", "Expected `str`"),
        ({"window": []}, "policy.window", "length >= 1"),
        ({"window": [WINDOW] * 65}, "policy.window", "length <= 64"),
        ({"window": {**WINDOW, "zone": "Europe/Olso"}}, "policy.window.zone", "did you mean `Europe/Oslo`?"),
        ({"window": [WINDOW, {**WINDOW, "from": "9"}]}, "policy.window[1].from", "HH:MM"),
        ({"window": {**WINDOW, "until": "22:00"}}, "policy.window.until", "never open"),
        ({"window": {**WINDOW, "days": ["sta"]}}, "policy.window.days[0]", "did you mean `sat`?"),
        ({"window": {**WINDOW, "tz": "UTC"}}, "policy.window.tz", "unknown field"),
        ({"window": {"until": "05:00", "zone": "UTC"}}, "policy.window.from", "missing required field"),
        ({"windows": [WINDOW]}, "policy.windows", "did you mean `window`?"),
        ({"not_befor": "2026-12-01T02:00:00Z"}, "policy.not_befor", "did you mean `not_before`?"),
        ({"prefetch": "yes"}, "policy.prefetch", "Expected `bool`"),
    ],
)
def test_a_policy_that_says_when_wrongly_is_refused_by_field(fields: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(BundleRefused) as caught:
        reading.parse_desired(policy(**fields))
    fault = next(each for each in caught.value.details if each.field == field)
    assert words in fault.message


@given(st.binary(max_size=200))
def test_random_desired_documents_are_read_or_refused(payload: bytes) -> None:
    try:
        reading.parse_desired(payload)
    except BundleRefused as refused:
        assert refused.reason in Reason
