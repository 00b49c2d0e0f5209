"""Finds stop strings in text that arrives in pieces. Pure.

A stop string may begin in one token and end in another, so text that could still become one is held back until it is
clear; nothing else is ever held back.
"""

from __future__ import annotations


class StopScanner:
    """Passes text on up to the first stop string, which is swallowed along with everything behind it.

    Of several stop strings the one that is complete first wins; of those completed by the same character, the one
    that began earliest.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Take more text and give back what is certain now; sets ``stopped`` when a stop string was completed."""
        if self.stopped:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        cut = self._first_stop(text)
        if cut is not None:
            self.stopped = True
            self._held = ""
            return text[:cut]
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back: no more text comes, so it is no stop string."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        """Where the winning stop string begins."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best = (start + len(stop), start)
        return None if best is None else best[1]

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string without being one."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return length
        return 0
