"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.stops import StopScanner

texts = st.text(alphabet="abé", max_size=40)
stop_strings = st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3).map(tuple)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


def expected(text: str, stops: tuple[str, ...]) -> str:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(ends)[1]] if ends else text


@given(texts, stop_strings, st.lists(st.integers(0, 100), max_size=12))
def test_how_text_is_cut_makes_no_difference(text: str, stops: tuple[str, ...], cuts: list[int]) -> None:
    scanner = StopScanner(stops)
    out = "".join(scanner.feed(piece) for piece in pieces_of(text, cuts)) + scanner.flush()
    assert out == expected(text, stops)
    assert scanner.stopped == any(stop in text for stop in stops)


@given(texts, stop_strings)
def test_only_the_beginning_of_a_stop_string_is_held_back(text: str, stops: tuple[str, ...]) -> None:
    scanner = StopScanner(stops)
    given_out = ""
    for end, char in enumerate(text, 1):
        given_out += scanner.feed(char)
        if scanner.stopped:
            return
        held = text[len(given_out) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stop_strings_all_passes() -> None:
    scanner = StopScanner(())
    assert scanner.feed("anything") == "anything"
    assert scanner.flush() == ""


@pytest.mark.parametrize(
    ("stops", "passed"),
    [(("lo w", "low"), "hel"), (("o w", "lo"), "hel"), (("o", "hello"), ""), (("d", "w"), "hello ")],
)
def test_the_first_to_complete_wins_then_the_earliest_begun(stops: tuple[str, ...], passed: str) -> None:
    scanner = StopScanner(stops)
    assert scanner.feed("hello world") == passed
    assert scanner.stopped
