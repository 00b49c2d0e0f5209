"""What the reconciler does next: pure, told the time, so that every order of events can be tried in a test.

The latest target wins, what failed is retried for as long as it is desired, what was refused is not. An order of the
operator comes first, then the target, then what is found out about what is installed, then a refresh of trust.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from agent.install.desired import DesiredBundle
from agent.install.update.attempt import Outcome

NEVER, AT_ONCE = float("inf"), float("-inf")


class Facts(Struct, frozen=True):
    """``writable``: what happens can be recorded. ``idle``: the state table is in IDLE; it is not after a fault, until
    the restart. ``refresh_due``: when trust is to be refreshed, ``refresh_asked``: by an operator, now.
    """

    writable: bool
    idle: bool
    refresh_due: float
    refresh_asked: bool


class Order(Struct, frozen=True):
    """What this device's operator wants made active; ``number`` tells orders apart."""

    number: int
    target: DesiredBundle


class ServeRecorded(Struct, frozen=True):
    """Serve what is recorded as active, without recording anything."""


class Restart(Struct, frozen=True):
    """Go on from what is recorded, as after a start."""


class Withdraw(Struct, frozen=True):
    """Remove what an abandoned target left."""


class Execute(Struct, frozen=True):
    order: Order


class Update(Struct, frozen=True):
    target: DesiredBundle


class Inspect(Struct, frozen=True):
    """Replace what was revoked; repair what is damaged, if there is no target (``may_repair``)."""

    may_repair: bool


class RefreshTrust(Struct, frozen=True):
    pass


class Wait(Struct, frozen=True):
    """Nothing is to be done before ``until``, unless something happens."""

    until: float


Step = ServeRecorded | Restart | Withdraw | Execute | Update | Inspect | RefreshTrust | Wait


class Planner:
    """Knows the target, the orders that wait, and when to try again; all times are monotonic seconds.

    ``target`` is what is desired and not yet active, None when there is nothing to be done about it.
    """

    def __init__(self) -> None:
        self.target: DesiredBundle | None = None
        self._orders: deque[Order] = deque()
        self._ordered = 0
        self._withdrawn = False
        self._inspected = False
        self._not_before = AT_ONCE
        self._restore_at = NEVER

    def next_step(self, now: float, facts: Facts) -> Step:
        """What to do now; what it reports (``restarted``, ``updated``, …) decides about the one after."""
        if not facts.writable:
            return ServeRecorded() if now >= self._restore_at else Wait(self._restore_at)
        if now >= self._restore_at:
            return Restart()
        if self._orders:
            return Execute(self._orders.popleft())
        if facts.idle and (step := self._next_idle_step(now)) is not None:
            return step
        if facts.refresh_asked or now >= facts.refresh_due:
            return RefreshTrust()
        retry_at = NEVER if self.target is None else self._not_before
        return Wait(min(self._restore_at, facts.refresh_due, retry_at))

    def _next_idle_step(self, now: float) -> Step | None:
        if self._withdrawn:
            self._withdrawn = False
            return Withdraw()
        if self.target is not None and now >= self._not_before:
            self._inspected = True
            return Update(self.target)
        if not self._inspected:
            self._inspected = True
            return Inspect(may_repair=self.target is None)
        return None

    def woken(self) -> None:
        """Something happened, or the time has come: what is installed is looked at once more."""
        self._inspected = False

    # What arrives.
    def adopt(self, target: DesiredBundle | None) -> None:
        """Another target, or none; whatever failed before says nothing about it."""
        self.target = target
        self._not_before = AT_ONCE

    def withdraw(self) -> None:
        """What was desired is not any more."""
        self._withdrawn = True

    def try_now(self) -> None:
        """Do not wait for the next attempt."""
        self._not_before = AT_ONCE

    def order(self, target: DesiredBundle) -> Order:
        """The operator wants ``target``, before anything else."""
        self._ordered += 1
        order = Order(self._ordered, target)
        self._orders.append(order)
        return order

    def drop_orders(self) -> list[Order]:
        """Orders that cannot be executed now; whoever gave them decides whether to ask again."""
        dropped = list(self._orders)
        self._orders.clear()
        return dropped

    # What became of a step.
    def restored(self, retry_at: float | None) -> None:
        """The active bundle is served; or is tried again at ``retry_at``."""
        self._restore_at = NEVER if retry_at is None else retry_at

    def not_restored(self, retry_at: float) -> None:
        """A rollback found that the old bundle does not load just now."""
        self._restore_at = min(self._restore_at, retry_at)

    def restart_soon(self) -> None:
        """What happens can be recorded again: go on as after a start."""
        self._restore_at = AT_ONCE

    def failed(self, retry_at: float) -> None:
        """A step failed by a fault of this device: it goes on from what is recorded, but not at once for ever."""
        self._restore_at = self._not_before = retry_at

    def updated(self, target: DesiredBundle, outcome: Outcome, now: float) -> bool:
        """An update to ``target`` ended; whether that was the last of it."""
        if self.target is not target:
            return False
        if outcome.kind == "later":
            self._not_before = now + outcome.retry_in
            return False
        if outcome.kind == "superseded":
            return False
        self.target = None
        # Without a target left, what was found revoked may have to be replaced.
        self.woken()
        if outcome.kind == "active":
            self._restore_at = NEVER
        return True

    def executed(self, outcome: Outcome, older: DesiredBundle | None) -> bool:
        """An order ended; whether ``older``, the target when it began, is not followed any more."""
        self.woken()
        if outcome.kind != "active":
            return False
        self._restore_at = NEVER
        if self.target is not older:
            return False
        self.target, self._withdrawn = None, True
        return True
