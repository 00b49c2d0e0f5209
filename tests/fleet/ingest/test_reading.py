"""What devices publish, read strictly: lies, floods, other versions and noise change nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import BundleRefused
from fleet.ingest import reading
from fleet.ingest.reading import Address, parse_topic
from tests.fleet.simulate.device import SimulatedDevice

ROOT = "edge/v1"


def messages() -> dict[str, Any]:
    device = SimulatedDevice("box-1")
    return {each.topic: json.loads(each.payload) for each in (*device.birth(1.0), *device.telemetry(2.0))}


def altered(topic: str, **changes: Any) -> bytes:
    return json.dumps(messages()[topic] | changes).encode()


@pytest.mark.parametrize(
    ("topic", "address"),
    [
        ("edge/v1/d/box-1/status", Address("box-1", "status")),
        ("edge/v1/d/box-1/telemetry/llm", Address("box-1", "telemetry/llm")),
        ("edge/v1/d/box-1/event/install", Address("box-1", "event", "install")),
        ("edge/v1/d/box-1/event/other", None),
        ("edge/v1/d/box-1/event", None),
        ("edge/v1/d/box 1/status", None),
        ("edge/v1/d//status", None),
        ("edge/v1/d/box-1/generate/me", None),
        ("edge/v1/d/box-1/status/more", None),
        ("edge/v1/c/box-1/status", None),
        ("other/d/box-1/status", None),
    ],
)
def test_topics(topic: str, address: Address | None) -> None:
    assert parse_topic(topic, ROOT) == address


def test_what_an_honest_device_says_is_read() -> None:
    found = {name: json.dumps(document).encode() for name, document in messages().items()}
    assert reading.read_status(found["status"]).online
    assert reading.read_info(found["info"], "box-1").groups == ["simulated"]
    assert reading.read_health(found["health"]).ready
    assert reading.read_reported(found["reported"]).active is not None
    assert reading.read_llm(found["telemetry/llm"]).counters.sound
    assert reading.read_system(found["telemetry/system"]).memory_available == 0.5


def test_a_field_of_a_newer_device_is_no_fault() -> None:
    assert reading.read_status(altered("status", newer=[1, 2])).online
    reading.read_llm(altered("telemetry/llm", newer={"a": 1}))


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (altered("info", device="box-2"), "says that it is 'box-2'"),
        (altered("info", groups=["x" * 65]), "groups is longer"),
        (altered("info", versions={"agent": "1\x1b[2J"}), "not printable"),
        (altered("info", host="none"), "is not valid at host"),
        (altered("info", host={"arch": "x86\x0064"}), "host.arch is longer than 64 characters, or not printable"),
        (altered("info", host={"arch": "x" * 65}), "host.arch is longer"),
        (b'{"device": "box-1", "device": "box-2"}', "twice"),
        (b"\xff", "UTF-8"),
        (b"[" * 5000, "nested"),
        (b'"' + b"x" * 70_000 + b'"', "more than the 65536 allowed"),
        (b"", "is not JSON"),
        (b"NaN", "NaN"),
    ],
)
def test_an_info_that_lies_is_refused(payload: bytes, words: str) -> None:
    with pytest.raises(BundleRefused) as raised:
        reading.read_info(payload, "box-1")
    assert words in raised.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "DANCING"},
        {"revision": 7},
        {"revision": "x" * 129},
        {"active": {"name": "../etc", "version": "1.0.0", "digest": "0" * 64, "security_epoch": 0}},
        {"active": {"name": "model", "version": "new", "digest": "0" * 64, "security_epoch": 0}},
        {"active": {"name": "model", "version": "1.0.0", "digest": "short", "security_epoch": 0}},
        {"error": {"reason": "x" * 65, "message": ""}},
        {"error": {"reason": "a", "message": "\x1b[2J"}},
    ],
)
def test_a_report_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleRefused):
        reading.read_reported(altered("reported", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"requests": {"stop": -1}},
        {"requests": {str(number): 1 for number in range(200)}},
        {"crashes": 2**60},
        {"start": -1},
        {"gen_ai.server.time_to_first_token": {"count": 2, "sum": 1, "bounds": [1, 2], "cumulative": [2, 1, 2]}},
        {"gen_ai.server.time_to_first_token": {"count": 2, "sum": 1, "bounds": [2, 1], "cumulative": [1, 2, 2]}},
        {"gen_ai.server.time_to_first_token": {"count": 2, "sum": 1, "bounds": [1], "cumulative": [1]}},
        {"gen_ai.server.time_per_output_token": {"count": 2, "sum": -1}},
    ],
)
def test_counters_that_contradict_themselves_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleRefused):
        reading.read_llm(altered("telemetry/llm", **changes))


def test_errors_are_what_the_device_did_wrong() -> None:
    counted = {"stop": 5, "length": 1, "cancelled": 1, "deadline": 1, "engine_failed": 2, "invalid_request": 9}
    counters = reading.read_llm(altered("telemetry/llm", requests=counted)).counters
    assert (counters.requests, counters.errors) == (19, 2)


@pytest.mark.parametrize(
    ("payload", "revision"),
    [
        (b"", ""),
        (b'{"revision": "r1", "bundle": {"name": "m", "version": "1.0.0"}}', "r1"),
        (b'{"revision": "r1"}', "?"),
        (b'{"revision": "r\\u00001", "bundle": {"name": "m", "version": "1.0.0"}}', "?"),
        (b"{", "?"),
    ],
)
def test_wishes_are_known_by_their_revision(payload: bytes, revision: str) -> None:
    assert reading.read_desired(payload) == revision


@given(st.binary(max_size=300), st.sampled_from(["status", "health", "reported", "llm", "system", "event"]))
def test_any_bytes_are_read_or_refused(payload: bytes, kind: str) -> None:
    try:
        getattr(reading, f"read_{kind}")(payload)
    except BundleRefused as refused:
        assert refused.message
