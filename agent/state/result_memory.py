"""Answers that are kept in memory alone: ``store_results = "hash"`` writes no text to the disk."""

from __future__ import annotations

from collections import OrderedDict

from agent.state.result_store import KEEP_BYTES, KEEP_SECONDS, Key


class ResultMemory:
    """As long and as many as the ledger keeps on disk; the oldest go first. Pure: the clock is handed in."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_bytes = keep_bytes
        self._kept: OrderedDict[Key, tuple[float, bytes]] = OrderedDict()
        self._size = 0

    def put(self, key: Key, last: bytes, now: float) -> bytes:
        """Keep ``last``; the bytes that count, which are those put in first."""
        if key in self._kept:
            return self._kept[key][1]
        self._kept[key] = (now, last)
        self._size += len(last)
        while self._size > self._keep_bytes and len(self._kept) > 1:
            self._drop_oldest()
        return last

    def get(self, key: Key) -> bytes | None:
        """The answer, if it is still here."""
        found = self._kept.get(key)
        return None if found is None else found[1]

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        while self._kept and next(iter(self._kept.values()))[0] <= now - KEEP_SECONDS:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, last) = self._kept.popitem(last=False)
        self._size -= len(last)
