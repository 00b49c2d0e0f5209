"""Counts what became of bundles: installed, failed, to be retried, rolled back, and why. Pure; counters rise until the
agent ends.
"""

from __future__ import annotations

from contract.reasons import Reason


class InstallMeter:
    """What the installation of bundles counts, by reason code."""

    def __init__(self) -> None:
        self.installs = 0
        self.failures: dict[str, int] = {}
        self.retries: dict[str, int] = {}
        self.rollbacks: dict[str, int] = {}

    def installed(self) -> None:
        """A bundle was committed."""
        self.installs += 1

    def failed(self, reason: Reason | None) -> None:
        """An attempt ended for good without the bundle being active: refused, given up on or rolled back."""
        _count(self.failures, reason)

    def retried(self, reason: Reason | None) -> None:
        """An attempt ended without the bundle being active, and another one follows."""
        _count(self.retries, reason)

    def rolled_back(self, reason: Reason | None) -> None:
        """A candidate or a committed bundle was replaced by what had been active before, or by nothing."""
        _count(self.rollbacks, reason)


def _count(counts: dict[str, int], reason: Reason | None) -> None:
    code = (reason or Reason.INTERRUPTED).value
    counts[code] = counts.get(code, 0) + 1
