"""Whether the agent really makes progress: only then is the watchdog fed. Pure.

A process whose event loop turns is not yet one that works. Each part that must go on says so by a beat; a part that
has been silent for longer than it may be has stalled, and then the service manager is to start us anew.
"""

from __future__ import annotations

LAG_SECONDS = 5.0
"""A beat that comes so late says that something blocked the loop; said in the log, not yet a stall."""


class Liveness:
    """Parts and their last beats; ``now`` is a clock that never goes back, in seconds."""

    def __init__(self) -> None:
        self._allowed: dict[str, float] = {}
        self._beats: dict[str, float] = {}

    def expect(self, part: str, seconds: float, now: float) -> None:
        """From now on ``part`` beats at least every ``seconds``."""
        self._allowed[part] = seconds
        self._beats[part] = now

    def beat(self, part: str, now: float) -> float:
        """``part`` goes on; how many seconds it was silent. Ignored (0) where nothing is expected."""
        if part not in self._allowed:
            return 0.0
        silent = now - self._beats[part]
        self._beats[part] = now
        return silent

    def stalled(self, now: float) -> list[str]:
        """Parts silent for longer than they may be."""
        return [part for part, allowed in self._allowed.items() if now - self._beats[part] > allowed]
