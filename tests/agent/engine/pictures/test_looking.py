"""Whose picture is looked at when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest

from agent.engine.interface import Generation
from agent.engine.pictures.encoder import Encoded
from agent.engine.pictures.features import FeatureCache
from agent.engine.pictures.looking import Looking, Seen
from agent.engine.pictures.plan import PlannedFor
from tests.seeing import LOW_TOKENS, png

MODEL = PlannedFor("phi3v", 8192, 4, 1)
LEAST = 2 * 1024**2
"""Bytes: the pixels of two crops alone are more."""


class Doing:
    """An encoder; ``looked`` is what it was given."""

    def __init__(self) -> None:
        self.looked: list[bytes] = []

    def encode(self, data: bytes, *, low: bool, most_pixels: int, wanted: threading.Event) -> Encoded:
        self.looked.append(data)
        return Encoded([-1] * LOW_TOKENS, np.zeros((LOW_TOKENS, 4), np.float32))

    def stop(self) -> None:
        raise AssertionError("nothing was cancelled")


@pytest.fixture
def encoder() -> Doing:
    return Doing()


@pytest.fixture
def looking(encoder: Doing) -> Iterator[Looking]:
    found = Looking(encoder, FeatureCache(1 << 20), MODEL)
    yield found
    found.close()


def look(number: int, picture: bytes) -> Generation:
    content: list[Any] = [None]
    return Generation(
        number, "anna", messages=[{"role": "user", "content": content}], pictures=[picture], details=["low"]
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
