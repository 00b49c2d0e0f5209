"""Remembers what was read before, so that a prompt that begins alike starts where the likeness ends. Pure.

Kept apart for each client: an answer that starts early would tell one client what another one asked. Only whole
slices of prompts are kept, because a slice gives the same keys and values every time: an answer is the same whether
its beginning was remembered or read anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Entry(Generic[Kept]):
    """``kept`` holds keys and values of ``tokens``."""

    client: str
    tokens: tuple[int, ...]
    kept: Kept
    size: int


class Prefixes(Generic[Kept]):
    """At most ``budget`` bytes, the least recently used go first."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: OrderedDict[tuple[str, tuple[int, ...]], Entry[Kept]] = OrderedDict()
        self.used = 0

    def find(
        self, client: str, tokens: Sequence[int], cut: Callable[[Sequence[int], int], int]
    ) -> tuple[Entry[Kept] | None, int]:
        """The entry that shares the longest beginning, and how many tokens of it to take: as many as are read alike
        (``cut``) of those that are shared.
        """
        best: Entry[Kept] | None = None
        length = 0
        for entry in self._entries.values():
            if entry.client == client:
                shared = cut(tokens, shared_length(entry.tokens, tokens))
                if shared > length:
                    best, length = entry, shared
        if best is not None:
            self._entries.move_to_end((client, best.tokens))
        return best, length

    def wants(self, client: str, tokens: Sequence[int], size: int) -> bool:
        """Whether keeping this adds anything and could fit."""
        return (
            0 < size <= self._budget
            and len(tokens) > 0
            and all(
                entry.client != client or shared_length(entry.tokens, tokens) < len(tokens)
                for entry in self._entries.values()
            )
        )

    def keep(self, client: str, tokens: Sequence[int], kept: Kept, size: int) -> None:
        """Take it in; what it contains as its own beginning, and the oldest beyond the budget, go."""
        new = Entry(client, tuple(tokens), kept, size)
        for entry in list(self._entries.values()):
            if entry.client == client and shared_length(entry.tokens, new.tokens) == len(entry.tokens):
                self._drop(entry)
        while self._entries and self.used + size > self._budget:
            self._drop(next(iter(self._entries.values())))
        if size <= self._budget:
            self._entries[client, new.tokens] = new
            self.used += size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.used = 0

    def _drop(self, entry: Entry[Kept]) -> None:
        del self._entries[entry.client, entry.tokens]
        self.used -= entry.size


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning."""
    low, high = 0, min(len(one), len(other))
    if tuple(one[:high]) == tuple(other[:high]):
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if tuple(one[low:middle]) == tuple(other[low:middle]):
            low = middle
        else:
            high = middle
    return low
