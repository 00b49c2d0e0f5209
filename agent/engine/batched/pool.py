"""Keys and values of all slots in one block of memory, which costs nothing until it is written, and then by the page.

In huge pages a request of one token would take megabytes for each head of each layer.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.batched.graph import Decoder

NORESERVE = 0x4000
"""``MAP_NORESERVE`` on x86 and ARM: as large as it may become, it is never all written at once."""


class Pool:
    """``array`` is ``[layers * 2, slots, kv_heads, length, head_size]``: keys and values alternate."""

    def __init__(self, decoder: Decoder, slots: int, length: int) -> None:
        shape = (len(decoder.past), slots, decoder.kv_heads, length, decoder.head_size)
        kind = np.dtype(decoder.kv_type)
        self.slots = slots
        self.length = length
        self.token_bytes = decoder.kv_bytes_per_token
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        self._memory = mmap.mmap(-1, int(np.prod(shape)) * kind.itemsize, flags=flags)
        with contextlib.suppress(OSError):  # a kernel without huge pages has nothing to leave out
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
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
