"""Custom scoring: packages that see and change the logits of every token, in every engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine import processors
from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine
from agent.engine.processors import Processors
from agent.host.thread_time import ThreadTime
from contract.errors import EngineFailed, RequestInvalid
from tests.agent.engine.conformance.test_generation import ask
from tests.agent.engine.driving import answer

CODE = """
calls = []

def only_even(vocab_size):
    def score(tokens, logits):
        assert len(logits) == vocab_size
        calls.append(len(tokens))
        logits[1::2] = -float("inf")
    return score

def broken(vocab_size):
    def score(tokens, logits):
        raise ValueError("lost my list")
    return score

def greedy_for_nothing(vocab_size):
    return lambda tokens, logits: logits.fill(-float("inf"))

not_ready = None
"""
POINTS = """[edge_bundle.logits_processors]
even = scoring_package:only_even
broken = scoring_package:broken
nothing = scoring_package:greedy_for_nothing
unready = scoring_package:not_ready
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that offers processors."""
    (tmp_path / "scoring_package.py").write_text(CODE)
    about = tmp_path / "scoring_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: scoring-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("scoring_package", None)


@pytest.fixture(params=["batched", "genai"])
def open_with(request: pytest.FixtureRequest, tiny_bundle: Path, package: None) -> Iterator[Callable[..., Engine]]:
    opened: list[Engine] = []

    def start(*names: str) -> Engine:
        opened.append(open_engine(tiny_bundle, engine=request.param, threads=1, max_bytes=16 << 20, processors=names))
        return opened[-1]

    yield start
    for engine in opened:
        engine.release()


def test_every_token_goes_through_the_processor(open_with: Callable[..., Engine]) -> None:
    outcome = answer(open_with("even"), ask(max_tokens=8, min_tokens=8, logprobs=True))
    ids = [entry["id"] for event in outcome.tokens for entry in event.logprobs or []]
    assert len(ids) == 8
    assert all(token % 2 == 0 for token in ids)
    calls = sys.modules["scoring_package"].calls
    assert calls == list(range(calls[0], calls[0] + 8)), "prompt and answer so far"
    assert calls[0] > 0


@pytest.mark.parametrize(("name", "said"), [("broken", "lost my list"), ("nothing", "no token")])
def test_what_cannot_be_scored_is_not_answered(open_with: Callable[..., Engine], name: str, said: str) -> None:
    engine = open_with("even", name)
    outcome = answer(engine, ask())
    assert outcome.reject is not None
    assert (outcome.reject.code, outcome.reject.kind) == (500, "scoring_failed")
    assert said in outcome.reject.message
    assert outcome.tokens == []
    assert not engine.busy, "its slot is free"


@pytest.mark.parametrize(("name", "said"), [("evn", "not installed"), ("unready", "cannot be loaded")])
def test_a_processor_that_is_not_there_keeps_the_model_from_loading(
    open_with: Callable[..., Engine], name: str, said: str
) -> None:
    with pytest.raises(EngineFailed, match=said):
        open_with(name)


def test_the_models_own_logits_stay_as_they_were() -> None:
    def spoil(_tokens: Sequence[int], logits: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        logits[:] = 7

    row = np.arange(4, dtype=np.float32)
    assert Processors({"spoil": spoil}).apply([1], row).tolist() == [7, 7, 7, 7]
    assert row.tolist() == [0, 1, 2, 3]


class Took:
    """A stopwatch that always says the same."""

    def __init__(self, computed: float, waited: float) -> None:
        self._time = ThreadTime(computed, waited)

    def read(self) -> ThreadTime:
        return self._time


@pytest.mark.parametrize(
    ("took", "says"),
    [
        (Took(computed=0.6, waited=0), "computed for longer than 0.5 s"),
        (Took(computed=0, waited=3.1), "waited for longer than 3 s"),
    ],
)
def test_one_that_holds_everybody_up_is_found_out(took: Took, says: str) -> None:
    slow = Processors({"slow": lambda _tokens, _logits: None}, lambda: took)
    with pytest.raises(RequestInvalid, match=says) as refused:
        slow.apply([1], np.zeros(4, dtype=np.float32))
    assert (refused.value.code, refused.value.kind) == (500, "scoring_failed")


def test_each_call_is_timed_for_itself() -> None:
    """Three of 0.4 s are quick ones, for which others may have taken minutes of the core."""
    scores = {name: lambda _tokens, logits: logits.fill(7) for name in ("one", "two", "three")}
    made: list[Took] = []
    timed = Processors(scores, lambda: made.append(Took(computed=0.4, waited=2.9)) or made[-1])  # type: ignore[func-returns-value]
    assert timed.apply([1], np.zeros(4, dtype=np.float32)).tolist() == [7] * 4
    assert len(made) == 3


def test_one_that_computes_is_timed_by_its_own_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "MAX_COMPUTE_SECONDS", 0.01)

    def compute(_tokens: Sequence[int], _logits: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        began = time.thread_time()
        while time.thread_time() - began <= 0.01:
            pass

    with pytest.raises(RequestInvalid, match="computed for longer"):
        Processors({"busy": compute}).apply([1], np.zeros(4, dtype=np.float32))
