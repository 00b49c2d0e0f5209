"""The quality canary: fixed prompts whose answers are known, asked of every device before and after its bundle changes,
so that idle boxes are judged too. Pure: who has to be asked, and what came of it; :mod:`fleet.controller.canary` asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

BEFORE = 0
"""The attempt that stands for what the device answered before it was asked for the bundle the first time."""

RETRY_SECONDS = 60.0
"""Before a device is asked again that answered too little."""

SAMPLE_SECONDS = 2.0
"""How much later a device's counters must have been heard to hold what it was asked."""

MIN_ANSWERED = 0.9
"""Of the prompts, for them to say anything of the device."""


class Prompt(Struct, frozen=True):
    """``expect``: texts of which one has to be in the answer; letters may be large or small."""

    prompt: str
    expect: tuple[str, ...]

    def is_met(self, answer: str) -> bool:
        """Whether ``answer`` is what was expected."""
        said = answer.casefold()
        return any(each.casefold() in said for each in self.expect)


class Canary(Struct, frozen=True):
    """``max_tokens`` of each answer."""

    prompts: tuple[Prompt, ...]
    max_tokens: int = 64

    def requests(self, at_least: int) -> int:
        """How many a device is asked: whole rounds, so many that the other gates can judge an idle box by them."""
        return len(self.prompts) * math.ceil(at_least / len(self.prompts))


class Score(Struct, frozen=True):
    """What came of ``asked`` prompts; whoever did not answer is not ``answered``. ``at``: when it was over."""

    asked: int
    answered: int
    expected: int
    at: float

    @property
    def is_enough(self) -> bool:
        return self.asked > 0 and self.answered >= MIN_ANSWERED * self.asked


class Quality(NamedTuple):
    """Of one device, for its gate."""

    before: Score | None
    after: Score | None


def share(scores: Sequence[Score]) -> float | None:
    """Of the answers, how many were expected; None where there is none."""
    answered = sum(each.answered for each in scores)
    return sum(each.expected for each in scores) / answered if answered else None


Scores = Mapping[str, Mapping[int, Score]]
"""By device, and of it by attempt; see :data:`BEFORE`."""


def score_of(scores: Scores, device: str, attempt: int) -> Score | None:
    return scores.get(device, {}).get(attempt)
