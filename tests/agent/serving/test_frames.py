"""When which piece goes out, and that nothing is lost between pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from agent.serving.frames import FrameStream
from contract.mqtt.answers import Frame, Timing


def test_first_piece_goes_at_once_and_later_ones_at_the_interval() -> None:
    frames = FrameStream(0.05, stream=True, now=0.0)
    frames.begin(1, "toy@1.0.0", 0.01)
    frames.feed("a", 1, 0.02)
    first = frames.take(0.02)
    assert first is not None
    assert (first.s, first.d, first.n, first.attempt, first.bundle, first.queue_ms) == (0, "a", 1, 1, "toy@1.0.0", 10.0)
    frames.feed("b", 2, 0.03)
    frames.feed("c", 3, 0.04)
    assert frames.take(0.04) is None
    assert frames.due_at() == 0.07
    second = frames.take(0.07)
    assert second is not None
    assert (second.s, second.d, second.n, second.attempt) == (1, "bc", 3, UNSET)


def test_new_attempt_begins_the_text_again_but_goes_on_counting() -> None:
    frames = FrameStream(0.0, stream=True, now=0.0)
    frames.begin(1, "toy@1.0.0", 0.0)
    frames.feed("lost", 1, 0.0)
    frames.take(0.0)
    frames.begin(2, "toy@1.0.0", 1.0)
    frames.feed("new", 1, 1.0)
    frame = frames.take(1.0)
    assert frame is not None
    assert (frame.s, frame.d, frame.attempt) == (1, "new", 2)
    last = frames.last("stop", 2.0)
    assert (last.text, last.attempt, last.s, last.timing.first_token_ms) == ("new", 2, 2, 1000.0)


def test_who_never_had_a_token_has_no_time_of_it() -> None:
    frames = FrameStream(0.05, stream=True, now=0.0)
    frames.begin(1, "toy@1.0.0", 0.5)
    assert frames.last("cancelled", 2.0).timing == Timing(queue_ms=500.0, total_ms=2000.0)


@given(
    st.lists(st.tuples(st.text(max_size=3), st.floats(0, 0.2), st.booleans()), max_size=50),
    st.floats(0, 0.2),
    st.booleans(),
)
def test_pieces_are_a_beginning_of_the_last_text(
    steps: list[tuple[str, float, bool]], interval: float, stream: bool
) -> None:
    frames = FrameStream(interval, stream=stream, now=0.0)
    frames.begin(1, "toy@1.0.0", 0.0)
    now, sent = 0.0, []
    for count, (text, wait, writable) in enumerate(steps, 1):
        now += wait
        frames.feed(text, count, now)
        if writable and (frame := frames.take(now)) is not None:
            sent.append(frame)
    last = frames.last("stop", now)
    assert last.text == "".join(text for text, _, _ in steps)
    assert last.text.startswith("".join(frame.d for frame in sent))
    assert [frame.s for frame in [*sent, last]] == list(range(len(sent) + 1))
    assert stream or not sent


@given(
    st.lists(st.tuples(st.text(max_size=3), st.integers(0, 2), st.floats(0, 0.2), st.booleans()), max_size=50),
    st.floats(0, 0.2),
    st.booleans(),
)
def test_with_the_rest_pieces_are_the_whole_text_of_each_answer(
    steps: list[tuple[str, int, float, bool]], interval: float, stream: bool
) -> None:
    frames = FrameStream(interval, stream=stream, now=0.0, choices=3)
    frames.begin(1, "toy@1.0.0", 0.0)
    now, sent, texts = 0.0, list[Frame](), ["", "", ""]
    for count, (text, choice, wait, writable) in enumerate(steps, 1):
        now += wait
        frames.feed(text, count, now, choice=choice)
        texts[choice] += text
        while writable and (frame := frames.take(now)) is not None:
            sent.append(frame)
    sent += frames.rest(now)
    last = frames.last("stop", now)
    joined = ["".join(frame.d for frame in sent if frame.index == choice) for choice in range(3)]
    assert joined == (texts if stream else ["", "", ""])
    assert last.choices is not UNSET
    assert [choice.text for choice in last.choices] == texts
    assert [frame.s for frame in sent] == list(range(len(sent)))
    assert last.s == len(sent)
    for choice in range(3):
        begins = [frame.attempt is not UNSET for frame in sent if frame.index == choice]
        assert begins == [True, *[False] * (len(begins) - 1)][: len(begins)]
