"""Kinds of processors: the real runtime, with what other kernels do to a row done to its results.

For processors that cannot be had or forced here. The figure of ``LoneRowRounds`` is that of AVX2 with SmolLM2: the same
on Zen 3 and where AVX2 is forced on a newer processor.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.batched.runner import Runner

RECORDED = 0.353
"""The largest difference between a row alone and the same row in a batch."""

NEIGHBOURS = 0.05
FP32 = 2e-5
FAR = 8.0


class Kind(Runner):
    """As it is here. ``lone_decodes`` counts runs of one token of one sequence."""

    lone_decodes = 0

    def _run(
        self,
        first: int,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> None:
        super()._run(first, ids, mask, positions, logits)
        type(self).lone_decodes += ids.size == 1
        self.spoil(first, ids, positions, logits)

    def spoil(
        self, first: int, ids: NDArray[np.int64], positions: NDArray[np.int64], logits: NDArray[np.float32]
    ) -> None:
        """Change what a run gave."""

    def stored(self, slot: int, place: int) -> NDArray[Any]:
        """Keys and values that were written."""
        found: NDArray[Any] = self._pool.array[:, slot, :, place]
        return found


def noise(row: NDArray[np.float32], size: float) -> NDArray[np.float32]:
    """Rounding that depends on the row alone, as a kernel's does."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(row.tobytes())))
    return random.uniform(-size, size, row.shape).astype(np.float32)


class LoneRowRounds(Kind):
    """AVX2, ARM with dot product: one row alone is rounded otherwise."""

    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if ids.size == 1:
            logits[0, 0] += noise(logits[0, 0], RECORDED)


class LoneRowIsFarOff(Kind):
    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if ids.size == 1:
            logits[0, 0] += noise(logits[0, 0], FAR)


class LoneRowKeepsOthers(Kind):
    """The same logits, but one bit of what is kept is another."""

    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if ids.size == 1:
            kept = self.stored(first, int(positions[0, 0]))
            kept[-1, -1, -1] = np.nextafter(kept[-1, -1, -1], np.float32(9))


class NeighboursCount(Kind):
    """A row depends on how many there are."""

    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        logits[:, 0] += np.float32(NEIGHBOURS * (len(ids) - 1))


class NeighboursShine(Kind):
    """A row depends on what the others are."""

    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if len(ids) > 1:
            logits[:, 0] += np.float32(NEIGHBOURS * (positions.sum() % 7))


class OddOneRounds(Kind):
    """Rows are computed in pairs, and what is left over like one alone: the last of three differs."""

    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if len(ids) % 2 and ids.shape[1] == 1:
            logits[-1, 0] += noise(logits[-1, 0], RECORDED)


class SlotsDiffer(Kind):
    """Prompts come out otherwise in another place of memory."""

    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if ids.shape[1] > 1:
            logits[0] += np.float32(NEIGHBOURS * first)


class SlicesDiffer(Kind):
    """What was read before counts for nothing."""

    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if ids.shape[1] > 1 and positions[0, 0]:
            logits[0] = noise(logits[0], FAR)


class BatchesRound(Kind):
    """Kernels for fp32 whose sums depend on the batch's size in the last bits."""

    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if len(ids) > 2:
            logits[:, 0] += np.float32(FP32)


class NotANumber(Kind):
    def spoil(self, first: int, ids: Any, positions: Any, logits: Any) -> None:
        if len(ids) > 1:
            logits[-1] = np.nan
