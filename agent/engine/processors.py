"""Custom scoring: logits processors of packages that the operator installed beside the agent and named.

A package offers a processor in the entry-point group :data:`GROUP`: a callable that gets the size of the vocabulary
when the model is loaded and gives back the scoring itself, ``score(tokens, logits)``. It is called once for every token
of every request, with the request's tokens so far (prompt first) and a copy of the model's logits (``float32``, one for
each token of the vocabulary), which it changes in place. Bias, penalties, grammar and sampling come after it;
log-probabilities in answers stay the model's own.

It runs in the worker, between two tokens of everybody, so it has to be quick. What it must not do ends the request with
an error rather than with an answer that was not scored: it may be what keeps a model from saying something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.host.thread_time import ThreadStopwatch, ThreadTime
from contract.errors import EngineFailed, RequestInvalid

GROUP = "edge_bundle.logits_processors"

MAX_COMPUTE_SECONDS = 0.5
"""On a core, for one token: one that takes longer holds everybody up. What others had the core for is not counted."""

MAX_WAIT_SECONDS = 3.0
"""For anything else, for one token: one that sleeps or asks somebody holds everybody up as well. Wide, since a page
that comes back from a slow disk, a lock that a starved thread holds and a machine that stood still look the same; yet
eight requests in one step (``MAX_SLOTS``) are refused before the worker counts as hung (``stall_seconds``, 30). Whoever
hangs for good meets that watchdog."""

Score = Callable[[Sequence[int], NDArray[np.float32]], object]


class Stopwatch(Protocol):
    """See :class:`agent.host.thread_time.ThreadStopwatch`."""

    def read(self) -> ThreadTime: ...


class Processors:
    """Processors in the order in which they were named; ``scores`` by name. ``stopwatch`` is made for each call."""

    def __init__(
        self, scores: dict[str, Score] | None = None, stopwatch: Callable[[], Stopwatch] = ThreadStopwatch
    ) -> None:
        self._scores = scores or {}
        self._stopwatch = stopwatch

    def __bool__(self) -> bool:
        return bool(self._scores)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._scores)

    def apply(self, tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """``logits`` as the processors want them; what was given is not changed.

        Raises:
            RequestInvalid: a processor failed, was too slow, or left nothing to choose from. Not the client's fault,
                which the code says.
        """
        row = logits.copy()
        for name, score in self._scores.items():
            stopwatch = self._stopwatch()
            try:
                score(tuple(tokens), row)
            except Exception as error:  # somebody else's code
                raise _failed(name, f"{type(error).__name__}: {error}") from error
            took = stopwatch.read()
            if took.computed > MAX_COMPUTE_SECONDS:
                raise _failed(name, f"it computed for longer than {MAX_COMPUTE_SECONDS:g} s for one token")
            if took.waited > MAX_WAIT_SECONDS:
                raise _failed(name, f"it waited for longer than {MAX_WAIT_SECONDS:g} s for one token")
            if np.isnan(row).any() or not (row > -np.inf).any():
                raise _failed(name, "it leaves no token to choose from")
        return row


def load_processors(names: Sequence[str], vocab_size: int) -> Processors:
    """The processors that the operator named, ready for a model.

    Raises:
        EngineFailed: one is not installed, is there twice, or cannot be loaded.
    """
    return Processors({name: _load(name, vocab_size) for name in names})


def _load(name: str, vocab_size: int) -> Score:
    found = list(entry_points(group=GROUP, name=name))
    if len(found) != 1:
        there = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none is"
        raise EngineFailed(
            f"the logits processor {name!r} is {'installed twice' if found else f'not installed ({there} there)'}: "
            "correct logits_processors in [worker]"
        )
    try:
        score: Any = found[0].load()(vocab_size)
    except Exception as error:  # somebody else's code
        raise EngineFailed(f"the logits processor {name!r} cannot be loaded: {error}") from error
    if not callable(score):
        raise EngineFailed(f"the logits processor {name!r} gives back something that cannot be called")
    made: Score = score
    return made


def _failed(name: str, why: str) -> RequestInvalid:
    return RequestInvalid(f"the logits processor {name!r} failed: {why[:200]}", code=500, kind="scoring_failed")
