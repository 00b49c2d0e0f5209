"""Keys and values of all slots in one block of memory, which costs nothing until it is written."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.batched.graph import Decoder

MAX_SLOTS = 8
"""On 2 to 4 cores a batch of 8 is where the sum of all speeds stops growing."""

GOOD_SLOTS = 4
"""Fewer than these are accepted only when a shorter context would fall below :data:`GOOD_LENGTH`."""

GOOD_LENGTH = 2048
LENGTH_GRANULE = 64


def plan_pool(budget: int, bytes_per_token: int, context_length: int) -> tuple[int, int]:
    """How many slots of how many tokens fit ``budget`` bytes; 0 slots when not even one short one does. Pure.

    The whole context is kept while four slots of it fit; then the length is halved down to :data:`GOOD_LENGTH`; then
    slots are given up.
    """
    tokens = budget // bytes_per_token
    length = context_length
    while length > GOOD_LENGTH and tokens < length * GOOD_SLOTS:
        length = max(GOOD_LENGTH, length // 2)
    slots = min(MAX_SLOTS, tokens // length)
    if slots:
        return slots, length
    length = tokens // LENGTH_GRANULE * LENGTH_GRANULE
    return (1, length) if length else (0, 0)


class Pool:
    """``array`` is ``[layers * 2, slots, kv_heads, length, head_size]``: keys and values alternate."""

    def __init__(self, decoder: Decoder, slots: int, length: int) -> None:
        shape = (len(decoder.past), slots, decoder.kv_heads, length, decoder.head_size)
        kind = np.dtype(decoder.kv_type)
        self.slots = slots
        self.length = length
        self._memory = mmap.mmap(-1, int(np.prod(shape)) * kind.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.array: NDArray[Any] = np.frombuffer(self._memory, dtype=kind).reshape(shape)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give ``target`` the first ``tokens`` of ``source``."""
        self.array[:, target, :, :tokens] = self.array[:, source, :, :tokens]

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first ``tokens`` of two slots."""
        kept = self.take(one, tokens)
        self.copy(other, one, tokens)
        self.put(other, kept)

    def take(self, slot: int, tokens: int) -> NDArray[Any]:
        """A copy of the first ``tokens`` of a slot."""
        return self.array[:, slot, :, :tokens].copy()

    def written(self, slot: int, position: int) -> NDArray[Any]:
        """A copy of what one place of a slot holds."""
        return self.array[:, slot, :, position].copy()

    def put(self, slot: int, kept: NDArray[Any], tokens: int | None = None) -> None:
        """Write the first ``tokens`` (all) of what :meth:`take` gave into a slot."""
        count = kept.shape[2] if tokens is None else tokens
        self.array[:, slot, :, :count] = kept[:, :, :count]

    def forget(self) -> None:
        """Give the pages back to the system; nothing in the pool is of use any more."""
        with contextlib.suppress(OSError):  # it is a favour, not a need
            self._memory.madvise(mmap.MADV_DONTNEED)
