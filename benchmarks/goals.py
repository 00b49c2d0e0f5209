"""What is asked of a model's speed beside llama.cpp's and the memory's, and how near a measurement came. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

ONE, EIGHT = "decode 1 [tok/s]", "decode 8 [tok/s]"
FIRST = "first token, 512 tokens [ms]"
STEADY = "decode 1, after its first token [tok/s]"
READ = "memory read [GB/s]"
IDLE = "idle CPU [% of a core]"
SHARE = "of the memory's read bandwidth, one stream [%]"
READ_SHARE = 85.0


class Goal(NamedTuple):
    """``measure`` of ours over the peer's is to be at least, or at most, ``bound``."""

    measure: str
    sense: Literal["at least", "at most"]
    bound: float


_LARGE = (Goal(ONE, "at least", 1.3), Goal(EIGHT, "at least", 2.5))
GOALS: Mapping[str, tuple[Goal, ...]] = {
    "llama-3.2-1b": (*_LARGE, Goal(FIRST, "at most", 0.7)),
    "phi-3.5-mini": (*_LARGE, Goal(FIRST, "at most", 0.9)),
    "mistral-7b": _LARGE,
}
"""By shape; smaller ones are measured, and have none beside llama.cpp."""


def judged(shape: str, ours: Mapping[str, float], peer: Mapping[str, float]) -> list[str]:
    """Rows of a Markdown table: every goal of ``shape``, what was measured, and whether that is enough.

    What was not measured is said to be so: it is not reached either.
    """
    rows = ["| goal | measured | |", "|---|---|---|"]
    for measure, sense, bound in GOALS.get(shape, ()):
        found = ours[measure] / peer[measure] if ours.get(measure) and peer.get(measure) else None
        rows.append(_row(f"{measure}: {sense} {bound:g} times llama.cpp's", found, sense, bound, "×"))
    rows.append(_row(f"{SHARE}: at least {READ_SHARE:g}", ours.get(SHARE), "at least", READ_SHARE, " %"))
    return rows


def _row(goal: str, found: float | None, sense: str, bound: float, unit: str) -> str:
    if found is None:
        return f"| {goal} | – | not measured |"
    reached = found >= bound if sense == "at least" else found <= bound
    digits = 0 if unit == " %" else 2
    return f"| {goal} | {found:.{digits}f}{unit} | {'reached' if reached else '**missed**'} |"
