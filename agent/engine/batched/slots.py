"""Which request lies in which slot. Pure: says what to copy, copies nothing.

Those that decode always fill the slots from 0 on without a gap, since one run of the graph covers a contiguous run of
slots; those that are still being read lie anywhere behind them.
"""

from __future__ import annotations

from typing import Generic, Literal, NamedTuple, TypeVar

Item = TypeVar("Item")


class Move(NamedTuple):
    """Copy ``source``'s contents to ``target``, or exchange the two."""

    kind: Literal["copy", "swap"]
    source: int
    target: int


class Slots(Generic[Item]):
    """A table of ``size`` slots; ``decoding`` is how many of the first ones decode."""

    def __init__(self, size: int) -> None:
        self._items: list[Item | None] = [None] * size
        self.decoding = 0

    @property
    def free(self) -> int:
        return self._items.count(None)

    def decoders(self) -> list[Item]:
        """Those in the first ``decoding`` slots, in order."""
        return [item for item in self._items[: self.decoding] if item is not None]

    def assign(self, item: Item) -> int:
        """Put a request that is to be read into the lowest free slot."""
        slot = self._items.index(None)
        self._items[slot] = item
        return slot

    def join(self, slot: int) -> Move | None:
        """The request in ``slot`` begins to decode: it belongs right behind the others that do."""
        assert slot >= self.decoding and self._items[slot] is not None
        target = self.decoding
        self.decoding += 1
        if slot == target:
            return None
        kind: Literal["copy", "swap"] = "copy" if self._items[target] is None else "swap"
        self._items[slot], self._items[target] = self._items[target], self._items[slot]
        return Move(kind, slot, target)

    def leave(self, slot: int) -> Move | None:
        """The request in ``slot`` is over; the last that decodes fills its place if it leaves a gap."""
        assert self._items[slot] is not None
        self._items[slot] = None
        if slot >= self.decoding:
            return None
        self.decoding -= 1
        last = self.decoding
        if slot == last:
            return None
        self._items[slot], self._items[last] = self._items[last], None
        return Move("copy", last, slot)

    def holds(self, item: Item) -> bool:
        return item in self._items

    def where(self, item: Item) -> int:
        """The slot of a request."""
        return self._items.index(item)
