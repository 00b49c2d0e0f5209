"""Frames become one answer, whatever is lost, repeated or begun again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contract.mqtt.answers import Frame, LastFrame, Timing, Usage
from contract.mqtt.encoding import encode
from edge_bundle.replies import Answer, Found, Piece, Queued, Reassembly, Refused


def last(text: str, sequence: int = 99, attempt: int = 1) -> bytes:
    return encode(
        LastFrame(sequence, text, "stop", Usage(1, 2, 3), Timing(queue_ms=0.0, total_ms=0.0), attempt, "toy@1.0.0")
    )


def shown(found: list[Found]) -> str:
    text = ""
    for item in found:
        if isinstance(item, Piece):
            text = item.text if item.restart else text + item.text
    return text


def test_pieces_come_as_they_are_and_the_end_adds_the_rest() -> None:
    reply = Reassembly()
    found = reply.feed(encode(Frame(0, "Hello", 1, attempt=1)))
    found += reply.feed(encode(Frame(1, ", wor", 2)))
    found += reply.feed(last("Hello, world", 2))
    assert shown(found) == "Hello, world"
    assert isinstance(found[-1], Answer)


def test_new_attempt_voids_what_was_shown() -> None:
    reply = Reassembly()
    reply.feed(encode(Frame(0, "wrong", 1, attempt=1)))
    assert reply.feed(encode(Frame(1, "right", 1, attempt=2))) == [Piece("right", restart=True)]


def test_resumed_text_continues_what_was_shown() -> None:
    reply = Reassembly()
    reply.feed(encode(Frame(0, "one ", 1, attempt=1)))
    assert reply.feed(encode(Frame(5, "one two ", 2, attempt=1))) == [Piece("two ")]


def test_rubbish_is_ignored() -> None:
    reply = Reassembly()
    for payload in (b"", b"{", b"[]", b"7", b'{"s": "x"}', b'{"error": 7}', b'{"finish_reason": 1}', b"\xff"):
        assert reply.feed(payload) == []


@given(st.lists(st.text(min_size=1, max_size=4), max_size=20), st.data())
def test_lost_and_repeated_frames_never_garble_the_end(parts: list[str], data: st.DataObject) -> None:
    frames = [
        encode(Frame(number, part, number + 1, attempt=1) if number == 0 else Frame(number, part, number + 1))
        for number, part in enumerate(parts)
    ]
    reply = Reassembly()
    found: list[Piece | Answer] = []
    for frame in frames:
        for _ in range(data.draw(st.integers(0, 2))):
            found += reply.feed(frame)
    found += reply.feed(last("".join(parts)))
    assert shown(found) == "".join(parts)


def test_waiting_and_refused_controls_are_no_text() -> None:
    reply = Reassembly()
    assert reply.feed(encode(Frame(0, "", 0, position=3, estimate_ms=1500.0))) == [Queued(3, 1500.0)]
    (refused,) = reply.feed(b'{"control":{"op":"update","error":{"code":400,"type":"invalid_request","message":"m"}}}')
    assert isinstance(refused, Refused)
    assert (refused.op, refused.error.code) == ("update", 400)
    assert reply.feed(encode(Frame(1, "text", 1, attempt=1))) == [Piece("text")]


def test_device_that_restarted_counts_from_zero_again() -> None:
    reply = Reassembly()
    for number in range(3):
        reply.feed(encode(Frame(number, "", 0, position=3 - number, estimate_ms=1.0)))
    assert reply.feed(encode(Frame(0, "again", 1, attempt=2))) == [Piece("again")]
