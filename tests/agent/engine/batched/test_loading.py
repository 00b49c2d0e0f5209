"""A load that takes long says so for as long as it advances, and no longer."""

from __future__ import annotations

import itertools
from concurrent.futures import Future

import pytest

from agent.engine.batched import loading
from agent.host.process_effort import Effort


def test_a_slow_disk_or_processor_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PULSE_SECONDS", 0.01)
    opening: Future[str] = Future()
    said: list[str] = []

    def hear(stage: str) -> None:
        said.append(stage)
        if len(said) == 3:
            opening.set_result("a session")

    for efforts in ((Effort(float(at), 0) for at in itertools.count()), (Effort(0.0, at) for at in itertools.count())):
        opening, said = Future(), []
        assert loading._wait(opening, hear, efforts.__next__) == "a session"
        assert said == ["reading the weights"] * 3


def test_one_that_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PULSE_SECONDS", 0.01)
    opening: Future[str] = Future()
    said: list[str] = []
    looked = itertools.count()

    def effort() -> Effort:
        if next(looked) == 5:
            opening.set_exception(RuntimeError("it does not load"))
        return Effort(7.0, 7)

    with pytest.raises(RuntimeError, match="it does not load"):
        loading._wait(opening, said.append, effort)
    assert said == []
