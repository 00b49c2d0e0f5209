"""Where a prompt is cut into the slices that it is read in. Pure.

Slices end at multiples of :data:`SLICE` from the beginning of a prompt; what is no whole slice, at its end or beside a
picture in one piece, is read apart. So slices depend on the prompt alone, and prompts that begin alike have the
same keys and values up to a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from msgspec import Struct

from agent.engine.pictures.features import number_of

SLICE = 16
"""Prompt tokens a step while others decode: it holds them up by two or three of their tokens only."""


class Slicing(Struct, frozen=True):
    """``together``: a picture is read in one piece."""

    together: bool = False

    def end(self, prompt: Sequence[int], filled: int, width: int) -> int:
        """Where the slice of ``prompt`` that begins at ``filled`` ends; it has at most ``width`` tokens, a multiple of
        :data:`SLICE`, but for a picture in one piece.
        """
        length = len(prompt)
        whole = length // SLICE * SLICE
        end = length if filled >= whole else min(filled + (-filled % SLICE or width), whole)
        stop = self.piece(prompt, filled, end)
        if stop >= end or prompt[filled] < 0:
            return stop
        # What is read in one wide slice here is read in several elsewhere: the rest in front of a picture stays apart.
        aligned = stop // SLICE * SLICE
        return aligned if aligned > filled else stop

    def piece(self, prompt: Sequence[int], filled: int, end: int) -> int:
        """``end``, or where else what begins at ``filled`` has to end so that it cuts no picture."""
        if not self.together:
            return end
        first = next((at for at in range(filled, end) if prompt[at] < 0), end)
        if first > filled or first == end:
            return first
        while first < len(prompt) and number_of(prompt[first]) == number_of(prompt[filled]):
            first += 1
        return first

    def longest(self, prompt: Sequence[int]) -> int:
        """Tokens of the longest picture in ``prompt`` that is read in one piece; 0 where none is."""
        if not self.together:
            return 0
        pictures = groupby(prompt, key=number_of)
        return max((len(list(tokens)) for number, tokens in pictures if number is not None), default=0)

    def cut(self, prompt: Sequence[int], length: int) -> int:
        """How many of the first ``length`` tokens of ``prompt`` are read alike whatever follows them."""
        if not self.together:
            return length // SLICE * SLICE
        while length and not self._is_cut(prompt, length):
            length -= 1
        return length

    @staticmethod
    def _is_cut(prompt: Sequence[int], at: int) -> bool:
        before = number_of(prompt[at - 1])
        if before is None:
            return at % SLICE == 0
        return at == len(prompt) or number_of(prompt[at]) != before
