"""Whether the result store works: a failure is logged once, and reported in ``health``."""

from __future__ import annotations

import logging
from collections.abc import Callable

from contract.errors import EdgeBundleError

log = logging.getLogger("edge_agent.serving")


class StoreHealth:
    """``on_change`` is called whenever ``failing`` changed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.failing = False

    def note(self, error: BaseException | None) -> None:
        """One more thing was asked of the result store; ``error`` is how it failed."""
        if error is not None and not isinstance(error, EdgeBundleError):
            # A fault of ours with one request does not concern the disk.
            log.error("the result store failed", exc_info=error)
            return
        failing = error is not None
        if failing != self.failing:
            self.failing = failing
            self._on_change()
