"""A load that takes long says so for as long as it advances, and no longer."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from agent.engine.batched import loading
from agent.engine.config import read_config
from agent.engine.interface import silent
from agent.engine.load_options import ModelFiles, Resources
from agent.host.process_effort import Effort
from contract.chat import limits, template

SECONDS = 120.0


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


@pytest.mark.parametrize("known", [True, False])
def test_a_template_that_is_compiled_meanwhile_takes_no_memory_from_the_weights(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """The session is opened in another thread, and what a template may take is a limit of the whole process."""
    bounded, opened = threading.Event(), threading.Event()
    open_session, run_bounded = loading.open_session, limits.run_bounded

    def open_while_bounded(*given: Any, **named: Any) -> Any:
        assert bounded.wait(SECONDS)
        try:
            weights = bytearray(8 * limits.MEMORY_BYTES)
            return open_session(*given, **named), len(weights)
        finally:
            opened.set()

    def hold(work: Callable[[], Any], allowance: limits.Allowance) -> Any:
        def work_meanwhile() -> Any:
            bounded.set()
            assert opened.wait(SECONDS)
            return work()

        return run_bounded(work_meanwhile, allowance)

    monkeypatch.setattr(loading, "open_session", open_while_bounded)
    monkeypatch.setattr(template, "run_bounded", hold)
    loaded = loading.load(
        ModelFiles(tiny_bundle), read_config(tiny_bundle), Resources(1), known=known, trial=True, hear=silent
    )
    assert loaded.tokenizing.chat
    assert loaded.session[1] == 8 * limits.MEMORY_BYTES
