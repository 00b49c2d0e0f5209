"""When a desired bundle may be made active: not before a time, and within maintenance windows. A device whose clock is
certainly wrong does not know, and waits.

What waits is in IDLE, so that orders, revocations and refreshes of trust go on.
"""

from __future__ import annotations

import logging
from typing import TypeGuard

from msgspec import UNSET

from agent.install.desired import Activates, DesiredBundle, DesiredDocument, Install, revision_of
from agent.install.ports import Clock
from agent.install.update.attempt import Attempt, Outcome
from agent.install.update.state_machine import Event
from agent.install.update.step_reporter import StepReporter
from agent.state.installation import InstallationState
from contract.identifiers import Digest
from contract.mqtt.reports import Waiting
from contract.trust.clock import EARLIEST
from contract.utc import format_utc
from contract.windows import next_opening

log = logging.getLogger("edge_agent.install")

LOOK_SECONDS = 60.0
"""The wall clock is looked at this often at least: it may be set."""

LEAST_SECONDS = 0.1


def waits(activates: Activates, now: float, floor: int) -> Waiting | None:
    """What a bundle waits for at ``now``, Unix seconds; None if it may be made active. ``floor`` has certainly been."""
    if activates.not_before is None and not activates.windows:
        return None
    if now < floor:
        text = f"the clock of this device says {format_utc(now)}, and {format_utc(floor)} has certainly been: set it"
        return Waiting("clock_not_set", f"{text}; until then it is not known whether the time has come")
    start = max(now, activates.not_before or 0.0)
    opens = next_opening(activates.windows, start)
    if opens == now:
        return None
    if opens is None:
        return Waiting("waiting_for_window", "no maintenance window opens within a week of its time")
    until = format_utc(opens)
    if start > now and opens == start:
        return Waiting("waiting_for_not_before", f"it is not to become active before {until}", until=until)
    return Waiting("waiting_for_window", f"its maintenance window opens at {until}", until=until)


def _is_desired(target: DesiredBundle) -> TypeGuard[Install]:
    """What the operator or the agent itself wants made active waits for nothing."""
    return isinstance(target, Install) and isinstance(target.origin, DesiredDocument)


class ActivationGate:
    """Holds targets back. ``now`` gives Unix seconds. ``kept``: what was fetched ahead, and is not to be removed."""

    def __init__(self, state: InstallationState, reporter: StepReporter, now: Clock) -> None:
        self._store = state
        self._reporter = reporter
        self._now = now
        self._prefetched: Install | None = None
        self.kept: Digest | None = None

    def hold(self, target: DesiredBundle) -> Outcome | None:
        """Whether nothing is to be done about ``target`` now: neither fetched nor activated.

        Raises:
            StoreBroken.
        """
        if not _is_desired(target):
            return None
        if target is not self._prefetched:
            self.forget()
        waiting = self._waits(target)
        if waiting is None or (target.activates.prefetch and target is not self._prefetched):
            return None
        outcome = self._postpone(target, waiting)
        self._reporter.publish()
        return outcome

    def admit(self, attempt: Attempt) -> Event:
        """The target of ``attempt`` lies sealed on this disk: go on, or wait.

        Raises:
            StoreBroken.
        """
        target = attempt.target
        if not _is_desired(target):
            return Event.SEALED
        waiting = self._waits(target)
        if waiting is None:
            self.forget()
            return Event.SEALED
        self._prefetched, self.kept = target, attempt.candidate
        attempt.outcome = self._postpone(target, waiting)
        return Event.PREFETCHED

    def forget(self) -> None:
        """What was fetched ahead is not wanted any more, or about to become active."""
        self._prefetched = self.kept = None

    def _waits(self, target: Install) -> Waiting | None:
        if target.activates == Activates():
            return None
        return waits(target.activates, self._now(), max(EARLIEST, self._store.clock_floor()))

    def _postpone(self, target: Install, waiting: Waiting) -> Outcome:
        waiting = Waiting(waiting.reason, waiting.message, target is self._prefetched, waiting.until)
        if waiting != self._reporter.waiting:
            log.info("%s waits: %s", target.reference, waiting.message)
            self._reporter.held(revision_of(target), waiting)
        delay = LOOK_SECONDS
        if waiting.until is not UNSET:
            opens = next_opening(target.activates.windows, max(self._now(), target.activates.not_before or 0.0))
            delay = LOOK_SECONDS if opens is None else min(LOOK_SECONDS, opens - self._now())
        return Outcome("later", retry_in=max(LEAST_SECONDS, delay))
