"""Whose picture is looked at when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest

from agent.engine.interface import Generation
from agent.engine.pictures.features import Encoded, FeatureCache
from agent.engine.pictures.looking import Looking, Seen
from agent.engine.pictures.plan import PlannedFor
from contract.bundle.picture_families import phi3v_cost
from contract.chat.limits import MEMORY_BYTES, Allowance, run_bounded
from contract.errors import RequestInvalid
from tests.seeing import LOW_TOKENS, png

MODEL = PlannedFor(phi3v_cost, 8192, 4, 1)
SECONDS = 120.0
LEAST = 2 * 1024**2
"""Bytes: the pixels of two crops alone are more."""


class Doing:
    """An encoder; ``looked`` is what it was given, and each look takes ``seconds`` by its clock."""

    def __init__(self) -> None:
        self.looked: list[bytes] = []
        self.seconds = 0.0
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def encode(self, data: bytes, *, low: bool, most_pixels: int, wanted: threading.Event) -> Encoded:
        self.looked.append(data)
        self.now += self.seconds
        return Encoded([-1] * LOW_TOKENS, np.zeros((LOW_TOKENS, 4), np.float32))

    def stop(self) -> None:
        raise AssertionError("nothing was cancelled")


@pytest.fixture
def encoder() -> Doing:
    return Doing()


@pytest.fixture
def looking(encoder: Doing) -> Iterator[Looking]:
    found = Looking(encoder, FeatureCache(1 << 20), MODEL, encoder.clock)
    yield found
    found.close()


def look(number: int, *pictures: bytes, seconds: float | None = None) -> Generation:
    content: list[Any] = [None] * len(pictures)
    return Generation(
        number,
        "anna",
        messages=[{"role": "user", "content": content}],
        pictures=list(pictures),
        details=["low"] * len(pictures),
        deadline_seconds=seconds,
    )


def finish(looking: Looking, *, idle: bool = False) -> list[Seen]:
    """What is known once the picture that is being looked at is."""
    if looking._job is not None:
        wait([looking._job[1]])
    return list(looking.advance(idle=idle))


def test_a_picture_waits_for_memory_that_answers_in_progress_hold(
    looking: Looking, encoder: Doing, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = png(1, 1, 1), png(2, 2, 2)
    for number, picture in enumerate((first, second)):
        looking.admit(look(number, picture))
    assert finish(looking) == []
    monkeypatch.setattr("agent.engine.pictures.looking.usable_bytes", lambda: LEAST)
    [seen] = finish(looking)
    assert seen.generation.request == 0
    assert finish(looking) == []
    assert encoder.looked == [first], "there is no room for the second one"
    assert looking.busy
    monkeypatch.undo()
    assert finish(looking) == []
    [seen] = finish(looking)
    assert (seen.generation.request, seen.refused) == (1, None)
    assert encoder.looked == [first, second]
    assert not looking.busy


def test_a_template_that_is_rendered_meanwhile_takes_no_memory_from_the_encoder(
    looking: Looking, encoder: Doing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a template may take is a limit of the whole process, and pictures are looked at in another thread."""
    bounded, looked = threading.Event(), threading.Event()
    encode = encoder.encode

    def encode_while_bounded(*given: Any, **named: Any) -> Encoded:
        assert bounded.wait(SECONDS)
        try:
            assert len(bytearray(8 * MEMORY_BYTES)) > 0
            return encode(*given, **named)
        finally:
            looked.set()

    def render() -> bool:
        bounded.set()
        return looked.wait(SECONDS)

    monkeypatch.setattr(encoder, "encode", encode_while_bounded)
    looking.admit(look(0, png(1, 1, 1)))
    assert finish(looking) == []
    assert run_bounded(render, Allowance())
    [seen] = finish(looking)
    assert seen.refused is None


def test_a_picture_is_refused_where_nobody_will_give_memory_back(
    looking: Looking, encoder: Doing, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking.admit(look(1, png(1, 1, 1)))
    monkeypatch.setattr("agent.engine.pictures.looking.usable_bytes", lambda: LEAST)
    [seen] = finish(looking, idle=True)
    assert seen.refused is not None
    assert "there are 2.0 MiB here" in seen.refused.message
    assert not looking.busy
    assert encoder.looked == []


def test_pictures_that_could_not_be_looked_at_in_time_are_refused_before_a_pixel_is_read(
    looking: Looking, encoder: Doing
) -> None:
    first, second, third = png(1, 1, 1), png(2, 2, 2), png(3, 3, 3)
    encoder.seconds = 8.0
    looking.admit(look(0, first, seconds=1.0))
    finish(looking)
    [seen] = finish(looking)
    assert seen.refused is None, "nobody knows how long it takes before the first one"
    encoder.seconds = 80.0
    looking.admit(look(1, second))
    finish(looking)
    [seen] = finish(looking)
    refusal = (
        "looking at these pictures takes 8.0 s here at the least, and 7.9 s are left: "
        "ask with detail low, send fewer, or allow more time"
    )
    with pytest.raises(RequestInvalid) as refused:
        looking.admit(look(2, third, seconds=7.9))
    assert (refused.value.message, refused.value.field) == (refusal, "deadline_ms")
    assert encoder.looked == [first, second]
    assert not looking.busy
    looking.admit(look(3, first, second, seconds=0.1))
    [seen] = finish(looking)
    assert (seen.generation.request, seen.refused) == (3, None), "what is known takes no time"
    looking.admit(look(4, third, third, seconds=8.1))
    assert looking.busy, "the same picture is looked at once"
