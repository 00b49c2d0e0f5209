"""Where a prompt's tokens stand in decoders that turn keys and queries by more than their order. Pure.

Words stand one behind the other along all axes; a picture's tokens stand beside each other by row and column, and what
follows stands behind the last of these (``get_rope_index`` of transformers' Qwen2.5-VL).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from agent.engine.pictures.features import Grid, number_of
from contract.bundle.picture_families import AXES


class Positions:
    """Of the tokens of ``prompt``, and of those that will follow; ``grids`` are its pictures' by their numbers."""

    def __init__(self, prompt: Sequence[int], grids: Mapping[int, Grid]) -> None:
        parts: list[NDArray[np.int64]] = []
        start = 0
        for number, tokens in groupby(prompt, key=number_of):
            count = len(list(tokens))
            grid = None if number is None else grids[number]
            size = count if grid is None else grid.rows * grid.columns
            for _ in range(0, count, size):  # the same picture may stand there twice
                parts.append(start + _offsets(size, grid))
                start = int(parts[-1].max()) + 1
        self._known = np.concatenate(parts, axis=1)
        self._ahead = start - len(prompt)

    def of(self, start: int, end: int) -> NDArray[np.int64]:
        """``[axes, end - start]`` for the tokens from ``start`` on."""
        known = self._known[:, start:end]
        later = np.arange(max(start, self._known.shape[1]), end, dtype=np.int64) + self._ahead
        return np.concatenate([known, np.broadcast_to(later, (AXES, len(later)))], axis=1)

    def after(self, filled: int) -> int:
        """Of the token behind ``filled`` ones, none of which is in the prompt any more."""
        return filled + self._ahead


def _offsets(count: int, grid: Grid | None) -> NDArray[np.int64]:
    each = np.arange(count, dtype=np.int64)
    if grid is None:
        return np.stack([each] * AXES)
    return np.stack([np.zeros_like(each), each // grid.columns, each % grid.columns])
