"""What a client sends when, and whom it believes; pure, with a clock of the test's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contract.errors import EngineFailed, RequestInvalid, SourceUnavailable, UsageError
from contract.mqtt.faults import ErrorBody
from contract.mqtt.picture_references import with_pictures
from contract.mqtt.pictures import MAX_PICTURE_BYTES, PART_BYTES, picture_digest, picture_url, split_picture
from contract.mqtt.reading import parse_request, request_fingerprint
from edge_bundle.replies import Answer, Piece
from edge_bundle.request_session import MAX_PARTS_SENT, RETRY_SECONDS, SILENCE_SECONDS, RequestSession, raise_error
from tests.seeing import png

LAST: dict[str, Any] = {
    "s": 1, "text": "all of it", "finish_reason": "stop", "attempt": 1, "bundle": "toy@1.0.0",
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    "timing": {"queue_ms": 0.0, "first_token_ms": 1.0, "total_ms": 2.0},
}  # fmt: skip


def asking(*, device: str | None = None, group: str | None = None, retry: bool = False) -> RequestSession:
    return RequestSession(
        {"id": "q", "prompt": "x"}, name="me", root="edge/v1", device=device, group=group, now=0.0, timeout=100.0,
        retry=retry,
    )  # fmt: skip


def reply(device: str, request: str = "q") -> str:
    return f"edge/v1/c/me/r/{device}/{request}"


def piece(text: str, sequence: int = 0) -> bytes:
    return json.dumps({"s": sequence, "d": text, "n": 1, **({} if sequence else {"attempt": 1})}).encode()


def last(**changes: Any) -> bytes:
    return json.dumps({**LAST, **changes}).encode()


def error(code: int, type_: str = "queue_full", **more: Any) -> bytes:
    return json.dumps({"s": 0, "error": {"code": code, "type": type_, "message": "no", **more}, "attempt": 1}).encode()


def test_a_device_is_asked_once_and_again_with_the_same_bytes_when_it_says_nothing() -> None:
    one = asking(device="box")
    assert one.actions(0.0) == ["ask"]
    first = one.message("ask")
    assert first[0] == "edge/v1/d/box/generate/me"
    assert one.actions(SILENCE_SECONDS - 1) == []
    assert one.due_at() == SILENCE_SECONDS
    assert one.actions(SILENCE_SECONDS) == ["ask", "resume"]
    assert one.message("ask") == first
    assert one.message("resume") == ("edge/v1/d/box/control/me", b'{"id": "q", "op": "resume"}')


def test_what_begins_anew_after_a_refusal_is_shown_from_its_beginning() -> None:
    one = asking(device="box", retry=True)
    for sequence in range(3):
        waiting = json.dumps({"s": sequence, "d": "", "n": 0, "position": 3 - sequence, "estimate_ms": 1.0}).encode()
        one.feed(reply("box"), waiting, 0.0)
    assert one.feed(reply("box"), error(503, "engine_unavailable", retry_after_ms=100), 1.0) == []
    assert one.actions(1.1) == ["ask"]
    assert one.feed(reply("box"), piece("all "), 2.0) == [Piece("all ")]
    assert one.feed(reply("box"), piece("of it", 1), 2.0) == [Piece("of it")]
    assert [found for found in one.feed(reply("box"), last(s=2), 3.0) if isinstance(found, Piece)] == []


def test_text_of_an_attempt_that_was_turned_away_is_void() -> None:
    one = asking(device="box", retry=True)
    one.feed(reply("box"), piece("something "), 0.0)
    one.feed(reply("box"), piece("else", 1), 0.0)
    one.feed(reply("box"), error(503, "engine_unavailable", retry_after_ms=100), 1.0)
    one.actions(1.1)
    assert one.feed(reply("box"), piece("all "), 2.0) == [Piece("all ", restart=True)]
    assert one.feed(reply("box"), piece("of it", 1), 2.0) == [Piece("of it")]


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"id": "no id", "prompt": "x"}, "id", 400),
        ({"id": "", "prompt": "x"}, "id", 400),
        ({"prompt": "x" * (1 << 20)}, None, 413),
        ({"prompt": object()}, None, 400),
        ({"prompt": "\ud800"}, None, 400),
    ],
)
def test_what_a_device_cannot_answer_under_its_id_is_refused_at_once(
    body: dict[str, Any], field: str | None, code: int
) -> None:
    """Its answer would go to another topic, and the client wait for the whole of its time."""
    with pytest.raises(RequestInvalid) as caught:
        RequestSession(body, name="me", root="edge/v1", device="box", group=None, now=0.0, timeout=9.0, retry=True)
    assert (caught.value.field, caught.value.code) == (field, code)


def test_other_scripts_take_the_bytes_that_they_have() -> None:
    body = {"prompt": "语" * 340_000}
    one = RequestSession(body, name="me", root="edge/v1", device="box", group=None, now=0.0, timeout=9.0, retry=True)
    assert json.loads(one.payload)["prompt"] == body["prompt"]


def test_whatever_is_heard_puts_the_question_off() -> None:
    one = asking(device="box")
    one.actions(0.0)
    one.feed(reply("box"), piece("a"), SILENCE_SECONDS - 1)
    assert one.actions(SILENCE_SECONDS) == []


def test_a_group_is_asked_again_when_the_member_that_got_it_may_have_vanished() -> None:
    one = asking(group="office")
    assert one.actions(0.0) == ["ask"]
    assert one.message("ask")[0] == "edge/v1/g/office/generate/me"
    one.reconnected(1.0)
    assert one.actions(1.0) == [], "the broker still has it"
    assert one.actions(SILENCE_SECONDS) == ["ask"]
    assert one.message("ask")[0] == "edge/v1/g/office/generate/me"


def test_the_member_that_answers_is_asked_itself_from_then_on() -> None:
    one = asking(group="office")
    one.actions(0.0)
    one.feed(reply("desk-1"), piece("a"), 1.0)
    one.reconnected(2.0)
    assert one.actions(2.0) == ["ask", "resume"]
    assert one.message("ask")[0] == "edge/v1/d/desk-1/generate/me"


def test_two_members_of_a_group_are_never_mixed() -> None:
    one = asking(group="office")
    one.actions(0.0)
    assert one.feed(reply("desk-1"), piece("one "), 1.0) == [Piece("one ")]
    assert one.feed(reply("desk-2"), piece("two "), 1.0) == []
    assert one.feed(reply("desk-2"), error(503, "interrupted"), 1.0) == []
    # The whole answer of another is as good: the one that began may have vanished for ever.
    voids, end = one.feed(reply("desk-2"), last(), 1.0)
    assert voids == Piece("all of it", restart=True)
    assert isinstance(end, Answer)
    assert end.id == "q"


@pytest.mark.parametrize("payload", [piece("forged"), last(text="forged"), error(500)])
def test_another_device_has_no_say_in_a_request_to_one(payload: bytes) -> None:
    one = asking(device="box")
    one.actions(0.0)
    assert one.feed(reply("stranger"), payload, 1.0) == []
    assert one.feed(reply("box", "another"), last(), 1.0) == []
    assert isinstance(one.feed(reply("box"), last(), 1.0)[-1], Answer)


def test_a_busy_device_is_waited_for_as_long_as_it_says() -> None:
    one = asking(device="box", retry=True)
    one.actions(0.0)
    assert one.feed(reply("box"), error(429, retry_after_ms=5000), 1.0) == []
    assert one.actions(5.9) == []
    assert one.actions(6.0) == ["ask"]
    assert one.feed(reply("box"), error(503, "no_model"), 6.0) == []
    assert one.due_at() == 6.0 + RETRY_SECONDS
    assert isinstance(one.feed(reply("box"), error(503, "interrupted"), 7.0)[0], Answer), "it would be asked for ever"


def test_a_wait_beyond_the_end_is_not_begun() -> None:
    one = asking(device="box", retry=True)
    one.actions(0.0)
    assert isinstance(one.feed(reply("box"), error(429, retry_after_ms=200_000), 1.0)[0], Answer)
    with pytest.raises(SourceUnavailable, match="within 100 s"):
        one.actions(100.0)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(400, RequestInvalid), (404, RequestInvalid), (409, RequestInvalid), (410, RequestInvalid), (413, RequestInvalid),
     (429, SourceUnavailable), (500, EngineFailed), (503, SourceUnavailable)],
)  # fmt: skip
def test_errors_go_to_whose_fault_it_is(code: int, expected: type[Exception]) -> None:
    with pytest.raises(expected, match="no model"):
        raise_error(ErrorBody(code, "any", "no model"))


@pytest.mark.parametrize("target", [{}, {"device": "a", "group": "b"}])
def test_one_of_device_and_group_is_asked(target: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="either"):
        asking(**target)  # type: ignore[arg-type]


def test_pictures_that_do_not_fit_are_sent_in_parts_before_and_again_where_they_are_missing() -> None:
    small, large = png(1, 2, 3), png(4, 5, 6) + bytes(PART_BYTES * 4)
    images = [
        {"type": "image_url", "image_url": {"url": picture_url(each), "detail": "low"}} for each in (small, large)
    ]
    body = {"id": "q", "messages": [{"role": "user", "content": [*images, {"type": "text", "text": "x"}]}]}
    one = RequestSession(body, name="me", root="edge/v1", device="box", group=None, now=0.0, timeout=9.0, retry=False)
    *parts, (topic, asked) = one.messages("ask")
    assert topic == "edge/v1/d/box/generate/me"
    assert parse_request(asked)[0] == "q"
    expected = [pair for each in (small, large) for pair in split_picture(each)]
    assert parts == [(f"edge/v1/d/box/picture/me/{part.digest}/{part.level}", piece) for part, piece in expected]
    parsed = parse_request(asked)[1]
    found = {picture_digest(each): each for each in (small, large)}
    assert request_fingerprint(with_pictures(parsed, found)) == request_fingerprint(parsed)
    assert list(one.messages("ask")) == [(topic, asked)], "asked again, the device has them"
    one.actions(0.0)
    for _ in range(MAX_PARTS_SENT - 1):
        assert one.feed(reply("box"), error(404, "picture_missing"), 1.0) == []
        assert one.actions(1.0) == ["ask"]
        assert list(one.messages("ask")) == [*parts, (topic, asked)]
    [answer] = one.feed(reply("box"), error(404, "picture_missing"), 2.0)
    assert isinstance(answer, Answer)
    assert answer.error is not None


def test_what_fits_travels_within_and_a_group_gets_nothing_else() -> None:
    image = {"type": "image_url", "image_url": {"url": picture_url(png(1, 2, 3))}}
    body = {"id": "q", "messages": [{"role": "user", "content": [image]}]}
    one = RequestSession(body, name="me", root="edge/v1", device="box", group=None, now=0.0, timeout=9.0, retry=False)
    [(_, payload)] = one.messages("ask")
    assert b"data:image/png" in payload
    large = {"type": "image_url", "image_url": {"url": picture_url(png(1, 2, 3) + bytes(1 << 20))}}
    body = {"id": "q", "messages": [{"role": "user", "content": [large]}]}
    with pytest.raises(RequestInvalid, match="a device takes 1,048,576"):
        RequestSession(body, name="me", root="edge/v1", device=None, group="g", now=0.0, timeout=9.0, retry=False)
    huge = {"type": "image_url", "image_url": {"url": picture_url(png(1, 2, 3) + bytes(MAX_PICTURE_BYTES))}}
    body = {"id": "q", "messages": [{"role": "user", "content": [huge]}]}
    with pytest.raises(RequestInvalid, match="6,291,456 in a request: make them smaller"):
        RequestSession(body, name="me", root="edge/v1", device="box", group=None, now=0.0, timeout=9.0, retry=False)
