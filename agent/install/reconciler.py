"""Reconciles the device with its desired state: does what :class:`~agent.install.planner.Planner` says comes next, and
tells it what became of that.

:mod:`agent.install.update.runner` does the work. Whatever may be abandoned safely is abandoned when another target
arrives; a switch, a commit or a rollback is finished first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, assert_never

from agent.install import planner as steps
from agent.install.desired import DesiredBundle, Repair, revision_of
from agent.install.desired_intake import DesiredIntake
from agent.install.planner import Planner
from agent.install.reporter import FAULT, OnReported, Reporter
from agent.install.settings import InstallConfig
from agent.install.trust.monitor import TrustMonitor
from agent.install.update.attempt import Outcome
from agent.install.update.runner import UpdateRunner
from agent.install.update.state_machine import State
from agent.state.installation import InstallationState, InstalledBundle
from agent.telemetry.installs import InstallMeter
from contract.errors import EdgeBundleError, StoreBroken, StoreFull
from contract.mqtt.reports import Reported
from contract.reasons import Reason
from contract.source.access import Source

log = logging.getLogger("edge_agent.install")

RESTORE_RETRY_SECONDS = 30.0
"""When the active bundle cannot be served or the state cannot be written: how long until it is tried again."""


class Parts(NamedTuple):
    """What carries out the planner's steps."""

    intake: DesiredIntake
    runner: UpdateRunner
    trust_monitor: TrustMonitor


class Reconciler:
    """The only one that changes what this device runs.

    ``set_desired`` may be called at any time in the event loop; ``start_active`` once, before ``run``; ``execute`` runs
    one order to its end, beside ``run``. ``changed`` wakes it, and is set by whoever changes what is to be done.
    """

    def __init__(
        self,
        *,
        state: InstallationState,
        config: InstallConfig,
        reporter: Reporter,
        planner: Planner,
        parts: Parts,
        changed: asyncio.Event,
    ) -> None:
        self._store = state
        self._settings, self._sources = config.settings, config.sources
        self._reporter = reporter
        self._planner = planner
        self._intake = parts.intake
        self._runner = parts.runner
        self._trust_monitor = parts.trust_monitor
        self._changed = changed
        self._clock = asyncio.get_running_loop().time
        self._orders: dict[int, asyncio.Future[Outcome]] = {}

    @property
    def sources(self) -> Mapping[str, Source]:
        """The sources that are configured, by their names."""
        return self._sources

    @property
    def reported(self) -> Reported:
        """What is reported now."""
        return self._reporter.current

    @property
    def warnings(self) -> list[str]:
        """Reason codes of what is not as it should be, and stops nothing."""
        return sorted({*self._trust_monitor.reasons, *self._reporter.reasons})

    @property
    def phase(self) -> State:
        """Where the installation stands."""
        return self._runner.state

    @property
    def meter(self) -> InstallMeter:
        """What became of bundles since the start."""
        return self._reporter.meter

    @property
    def expiry(self) -> dict[str, int]:
        """When the metadata of each role expires, Unix seconds. Raises StoreBroken."""
        return self._store.warning_store.expiry()

    @property
    def revoked(self) -> bool:
        """Whether what is active was revoked by its publisher. Raises StoreBroken."""
        return self._store.snapshot().active in self._store.warning_store.revoked()

    def observed(self, observer: OnReported) -> AbstractContextManager[None]:
        """``observer`` is called with what is reported, too, while the block runs."""
        return self._reporter.observed(observer)

    def set_desired(self, payload: bytes, repeated: bool = False) -> None:
        """A ``desired`` document arrived; only the latest counts.

        ``repeated``: the broker's retained copy, after a connection; somebody who publishes the same document again
        wants it tried now.
        """
        self._intake.receive(payload, repeated=repeated)

    async def start_active(self) -> None:
        """Bring an interrupted installation to a safe end and serve the active bundle, completely verified.

        Raises:
            StoreBroken, StoreFull.
        """
        self._reporter.set_aside()
        self._intake.follow_recorded()
        if self._store.unwritable is not None:
            await self._restore(self._runner.serve_recorded())
            return
        try:
            await self._restore(self._runner.restart())
        except Exception as error:
            if isinstance(error, EdgeBundleError):
                raise
            self._reporter.fault()
            self._planner.restored(self._retry_at())
        active = self._store.bundle(self._store.snapshot().active)
        if self._runner.damaged and self._planner.target is None and active is not None:
            # Nothing is desired just now, but this is what the device is meant to run.
            self._repair(active)

    def recovered(self) -> None:
        """What happens can be recorded again: go on as after a start."""
        self._planner.restart_soon()
        self._changed.set()
        self._reporter.publish()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._intake.run(), name="desired documents")
            group.create_task(self._work(), name="installation")

    async def execute(self, target: DesiredBundle) -> Outcome:
        """Execute an order of this device's operator, before anything else; how it ended.

        Once it is done, a ``desired`` document that came earlier is not followed any more.
        """
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._orders[self._planner.order(target).number] = outcome
        self._runner.supersede("operator")
        self._changed.set()
        return await outcome

    async def refresh_trust(self, sources: Sequence[Source] = ()) -> None:
        """Refresh trust from the sources, as soon as nothing is being installed; revoked bundles are handled as the
        policy demands. ``sources``: others than those that are configured.

        Raises:
            EdgeBundleError: they could not be reached, or their metadata is refused.
        """
        request = self._trust_monitor.request(sources)
        self._changed.set()
        problem = await request
        if problem is not None:
            raise problem

    def _retry_at(self) -> float:
        return self._clock() + RESTORE_RETRY_SECONDS

    async def _work(self) -> None:
        while True:
            self._changed.clear()
            unwritable = self._store.unwritable
            if unwritable is not None:
                self._fail_waiting(unwritable)
            step = self._planner.next_step(self._clock(), self._facts())
            try:
                await self._perform(step)
                if not self._runner.restored:
                    self._planner.not_restored(self._retry_at())
            except (StoreBroken, StoreFull) as error:
                log.warning("the installation state cannot be written: %s", error.message)
                self._planner.failed(self._retry_at())
                self._trust_monitor.fail_requests(error)
            except Exception:
                self._reporter.fault()
                self._planner.failed(max(self._retry_at(), self._clock() + self._runner.backoff.after_failure()))

    def _facts(self) -> steps.Facts:
        return steps.Facts(
            writable=self._store.unwritable is None,
            idle=self._runner.state is State.IDLE,
            refresh_due=self._trust_monitor.due,
            refresh_asked=self._trust_monitor.is_requested,
        )

    async def _wait(self, until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(None if until == steps.NEVER else until):
                await self._changed.wait()
        self._planner.woken()

    async def _perform(self, step: steps.Step) -> None:
        match step:
            case steps.ServeRecorded():
                await self._restore(self._runner.serve_recorded())
            case steps.Restart():
                await self._restore(self._runner.restart())
            case steps.Withdraw():
                await self._runner.withdraw()
            case steps.Execute(order):
                await self._execute(order)
            case steps.Update(target):
                await self._update(target)
            case steps.Inspect(may_repair):
                await self._inspect(may_repair=may_repair)
            case steps.RefreshTrust():
                await self._trust_monitor.refresh_next(self._changed)
                self._intake.retry_unlisted()
                self._planner.woken()
            case steps.Wait(until):
                await self._wait(until)
            case _:
                assert_never(step)

    async def _restore(self, work: Coroutine[None, None, None]) -> None:
        await work
        self._planner.restored(None if self._runner.restored else self._retry_at())

    async def _update(self, target: DesiredBundle) -> None:
        outcome = await self._apply(target)
        self._trust_monitor.report_new_warnings()
        if not self._planner.updated(target, outcome, self._clock()):
            return
        self._runner.backoff.reset()
        if outcome.kind == "active":
            self._intake.report_rejected()
        elif outcome.error is not None and outcome.error.reason is Reason.NOT_LISTED:
            self._intake.was_unlisted()
            self._trust_monitor.refresh_soon()

    async def _execute(self, order: steps.Order) -> None:
        older, future = self._planner.target, self._orders.pop(order.number)
        outcome = Outcome("later", FAULT)
        try:
            outcome = await self._apply(order.target)
        except (StoreBroken, StoreFull) as error:
            outcome = Outcome("later", error)
            raise
        finally:
            if not future.done():
                future.set_result(outcome)
        if outcome.kind == "active" and self._planner.target is older:
            self._store.override_desired()
        self._planner.executed(outcome, older)

    async def _apply(self, target: DesiredBundle) -> Outcome:
        in_force = {bundle.reference for bundle in self._store.in_force()}
        if target.reference in in_force and not self._runner.damaged:
            self._reporter.begin(revision_of(target))
            self._reporter.publish()
            return Outcome("active")
        outcome = await self._runner.run(target)
        if outcome.kind == "active":
            self._trust_monitor.repaired(self._store.snapshot().active)
        return outcome

    async def _inspect(self, *, may_repair: bool) -> None:
        damaged = self._trust_monitor.next_damaged() if may_repair else None
        if damaged is not None:
            # It is obtained once more, while it serves on from what it has loaded.
            self._runner.damaged = True
            self._repair(damaged)
        elif await self._trust_monitor.replace_revoked():
            self._planner.woken()
        self._reporter.publish()

    def _repair(self, damaged: InstalledBundle) -> None:
        sources, revision = tuple(self._sources.values()), self._reporter.revision
        self._planner.adopt(Repair(damaged.name, damaged.version, self._settings, sources=sources, revision=revision))

    def _fail_waiting(self, unwritable: StoreFull | StoreBroken) -> None:
        """Until what happens can be recorded nothing is begun."""
        for order in self._planner.drop_orders():
            future = self._orders.pop(order.number)
            if not future.done():
                future.set_result(Outcome("later", unwritable))
        self._trust_monitor.fail_requests(unwritable)
