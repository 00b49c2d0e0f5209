"""What an encoder made of pictures, and keeping it for the next question: bounded, apart for each client. Pure.

In a prompt every position of a picture is a token below zero that names the picture and the position. So two prompts
begin alike exactly where their pictures are the same, and keys and values of a beginning are found by tokens alone.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

MAX_POSITIONS = 1 << 20
"""More than a picture ever has: a position and a picture's number share one integer."""


def number_of(token: int) -> int | None:
    """Of which picture ``token`` is a position; None for words."""
    return (-1 - token) // MAX_POSITIONS if token < 0 else None


class PictureKey(NamedTuple):
    """One picture of one client, who alone finds it again: an answer that starts early would tell of others."""

    client: str
    digest: bytes
    low: bool


class Grid(NamedTuple):
    """Of a picture's positions, row by row."""

    rows: int
    columns: int


class Encoded(NamedTuple):
    """``ids`` stand for the picture in a prompt, those below zero for one of ``rows`` ``[positions, hidden]`` each;
    ``grid`` is how these lie, where that matters.
    """

    ids: list[int]
    rows: NDArray[np.float32]
    grid: Grid | None = None


class Features:
    """``rows`` ``[positions, hidden]`` of the picture with this ``number``, which lie in a ``grid`` where that matters;
    ``tokens`` stand for it in a prompt, those below zero for a row each. It lives as long as somebody holds it.
    """

    def __init__(self, number: int, encoded: Encoded) -> None:
        ids, self.rows, self.grid = encoded
        self.number = number
        names = itertools.count(-1 - number * MAX_POSITIONS, -1)
        self.tokens = [token if token >= 0 else next(names) for token in ids]


class FeatureCache:
    """At most ``budget`` bytes of pictures that nobody asks about now, the least recently used go first. What a request
    holds is found by :meth:`rows` in any case.
    """

    def __init__(self, budget: int = 0) -> None:
        self.budget = budget
        self._kept: OrderedDict[PictureKey, Features] = OrderedDict()
        self._known: WeakValueDictionary[int, Features] = WeakValueDictionary()
        self._named: WeakValueDictionary[PictureKey, Features] = WeakValueDictionary()
        self._number = 0
        self.used = 0

    def find(self, key: PictureKey) -> Features | None:
        """What was made of this picture before."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._named.get(key)

    def keep(self, key: PictureKey, encoded: Encoded) -> Features:
        """Take in what the encoder made of a picture."""
        rows = encoded.rows
        features = self._known[self._number] = self._named[key] = Features(self._number, encoded)
        self._number += 1
        if (replaced := self._kept.pop(key, None)) is not None:
            self.used -= replaced.rows.nbytes
        if rows.nbytes <= self.budget:
            self._kept[key] = features
            self.used += rows.nbytes
            while self.used > self.budget:
                self.used -= self._kept.popitem(last=False)[1].rows.nbytes
        return features

    def rows(self, tokens: NDArray[np.int64], width: int) -> NDArray[np.float32]:
        """``[tokens, width]``: a row for each of ``tokens``, which are positions of pictures that are held."""
        found = np.empty((len(tokens), width), np.float32)
        numbers, positions = np.divmod(-1 - tokens, MAX_POSITIONS)
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self._known[int(number)].rows[positions[here]]
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.used = 0
