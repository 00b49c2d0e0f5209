"""Fewer steps that still break something (Zeller's ddmin)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def shrink(steps: list[T], breaks: Callable[[list[T]], bool]) -> list[T]:
    """A part of ``steps``, in order, of which no piece can be left out; ``steps`` itself where it breaks nothing."""
    if not breaks(steps):
        return steps
    pieces = 2
    while len(steps) > 1:
        size = -(-len(steps) // pieces)
        parts = [steps[at : at + size] for at in range(0, len(steps), size)]
        for number in range(len(parts)):
            rest = [step for other, part in enumerate(parts) if other != number for step in part]
            if breaks(rest):
                steps, pieces = rest, max(2, pieces - 1)
                break
        else:
            if size == 1:
                break
            pieces = min(len(steps), pieces * 2)
    return steps
