"""How long to wait so that a download stays below its limit (pure: the clock is handed in)."""

from __future__ import annotations

BURST_SECONDS = 0.5
"""What may come at once after a pause: enough for a small file, too little to be felt by the rest of the network."""

MIN_READ_BYTES = 16 << 10
MAX_READ_BYTES = 1 << 20


class Bandwidth:
    """A token bucket over bytes that have arrived; ``bytes_per_second`` 0 means no limit."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free_at = float("-inf")

    @property
    def read_bytes(self) -> int:
        """How much to read at a time: small enough that a slow limit does not turn into long silences."""
        if not self._rate:
            return MAX_READ_BYTES
        return max(MIN_READ_BYTES, min(MAX_READ_BYTES, self._rate // 4))

    def delay(self, count: int, now: float) -> float:
        """``count`` bytes arrived at ``now`` (monotonic seconds): how many seconds to wait before reading on."""
        if not self._rate:
            return 0.0
        self._free_at = max(self._free_at, now - BURST_SECONDS) + count / self._rate
        return max(0.0, self._free_at - now)
