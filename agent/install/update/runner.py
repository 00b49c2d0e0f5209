"""Runs the state table for one target: records the next state, performs its actions, and feeds back their events.

Nothing here trusts a bundle (the installer's work) or loads one (a worker's), and nothing here decides what follows on
what (:mod:`agent.install.update.state_machine`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal, NamedTuple, assert_never

from agent.install.desired import DesiredBundle, RequestedBy, Rollback, revision_of
from agent.install.reporter import reported_error
from agent.install.settings import InstallSettings
from agent.install.update.activation import Activation
from agent.install.update.attempt import Attempt, Outcome
from agent.install.update.collector import Collector
from agent.install.update.download_step import DownloadStep
from agent.install.update.gate import ActivationGate
from agent.install.update.restore import Restorer
from agent.install.update.state_machine import (
    Action,
    Entry,
    Event,
    State,
    recorded_state,
    restart_event,
    step,
)
from agent.install.update.step_reporter import StepReporter
from agent.state.installation import InstallationState, InstalledBundle
from contract.errors import BundleRefused, StoreBroken, StoreFull
from contract.identifiers import Digest
from contract.reasons import Reason
from contract.system.backoff import Backoff
from contract.system.durable import Disk


class Parts(NamedTuple):
    """What carries out the actions of the state table."""

    download: DownloadStep
    gate: ActivationGate
    activation: Activation
    restorer: Restorer
    collector: Collector


class UpdateRunner:
    """Owns the state; ``run``, ``restart`` and what is called while nothing is installed come one after the other,
    ``supersede`` at any time.

    ``backoff`` counts the failures of the current target. ``restored``: the active bundle is served; ``damaged``: its
    bytes on this disk are not what they should be.
    """

    def __init__(
        self,
        *,
        disk: Disk,
        state: InstallationState,
        settings: InstallSettings,
        reporter: StepReporter,
        parts: Parts,
        backoff: Backoff,
    ) -> None:
        self._disk = disk
        self._store = state
        self._settings = settings
        self._reporter = reporter
        self._parts = parts
        self._superseded = asyncio.Event()
        self._protected: Digest | None = None
        self._revoked_adapter: InstalledBundle | None = None
        self.backoff = backoff
        self.restored = False
        self.damaged = False
        snapshot = state.snapshot()
        self._attempt = Attempt(reporter, backoff)
        self._attempt.candidate, self._attempt.failure = snapshot.candidate, snapshot.failure
        in_force = {bundle.digest for bundle in state.in_force()}
        self._state = recorded_state(
            snapshot.phase,
            candidate_known=snapshot.candidate is not None,
            candidate_in_force=snapshot.candidate in in_force,
        )

    @property
    def state(self) -> State:
        return self._state

    async def run(self, target: DesiredBundle) -> Outcome:
        """Make the target active, when its time has come.

        Raises:
            StoreBroken, StoreFull: the state cannot be recorded; ``restart`` goes on from what was.
        """
        if (held := self._parts.gate.hold(target)) is not None:
            return held
        last = self._attempt
        again = target is last.known_target and last.outcome.kind == "later"
        self._attempt = Attempt(self._reporter, self.backoff, target, max_done=last.max_done if again else 0)
        self._settings = target.settings
        self._protected = None
        self._superseded.clear()
        self._reporter.begin(revision_of(target), again=again)
        if not again:
            self._reporter.wanted(target)
        await self._run_table(Event.WANTED)
        outcome = self._attempt.outcome
        if outcome.error is not None:
            meter = self._reporter.meter
            (meter.retried if outcome.kind == "later" else meter.failed)(outcome.error.reason)
        return outcome

    async def restart(self) -> None:
        """Go on from whatever is recorded, and serve the active bundle.

        Raises:
            StoreBroken, StoreFull.
        """
        await self._run_table(restart_event(self._state, failed=self._attempt.failure is not None))

    async def withdraw(self) -> None:
        """Nothing is desired any more: remove what an abandoned target left on this disk."""
        self._protected = None
        self._parts.gate.forget()
        await self._run_table(Event.WITHDRAWN)

    async def retire(self) -> None:
        """Serve nothing from now on: what is active was revoked and there is nothing acceptable to go back to.

        Raises:
            StoreBroken, StoreFull.
        """
        await self._run_table(Event.REVOKED)

    async def drop_adapter(self, adapter: InstalledBundle) -> None:
        """Serve the active bundle without ``adapter`` from now on: it was revoked.

        Raises:
            StoreBroken, StoreFull.
        """
        self._revoked_adapter = adapter
        await self._run_table(Event.ADAPTER_REVOKED)

    async def serve_recorded(self) -> None:
        """Serve the active bundle while the state cannot be written: nothing happens that would have to be recorded."""
        if self._store.unwritable is not None and self._store.unwritable.reason is Reason.STORE_FULL:
            self._parts.collector.free_space()
        await self._restore()
        self._reporter.publish()

    def supersede(self, by: RequestedBy) -> None:
        """Another target, requested by ``by``, waits: abandon this one at the next safe point."""
        self._attempt.superseded_by = by
        self._superseded.set()

    async def _run_table(self, event: Event | None) -> None:
        try:
            while event is not None:
                entry = self._enter(event)
                event = None
                for action in entry.actions:
                    event = await self._perform(action)
        except (StoreBroken, StoreFull):
            # A candidate that cannot be switched to must not keep what made room for it from answering.
            await self._parts.restorer.resume()
            raise
        # The last action may have changed the report.
        self._reporter.publish()

    def _enter(self, event: Event) -> Entry:
        entry, attempt = step(self._state, event), self._attempt
        if entry.commits:
            assert attempt.candidate is not None
            back = isinstance(attempt.known_target, Rollback)
            self._store.enter_commit(entry.state.value, attempt.candidate, back=back)
            self.restored, self.damaged = True, False
        else:
            self._store.enter(
                entry.state.value,
                None if entry.state is State.IDLE else attempt.candidate,
                attempt.failure if entry.state is State.ROLLBACK else None,
            )
        self._state = entry.state
        self._reporter.phase(entry.state)
        return entry

    async def _perform(self, action: Action) -> Event | None:
        # What follows starts and ends processes; a test that cuts the power does it here, too.
        self._disk.effects.perform("action", action.value, lambda: None)
        attempt = self._attempt
        match action:
            case Action.OBTAIN:
                work = self._obtain(attempt)
            case Action.RUN_CANARY:
                work = self._parts.activation.examine(attempt)
            case Action.WATCH:
                work = self._parts.activation.watch(attempt)
            case Action.SWAP:
                return await self._parts.activation.swap(attempt)
            case Action.REPORT_COMMIT:
                return self._parts.activation.report_commit(attempt)
            case Action.REPORT_ROLLBACK:
                return self._report_rollback(attempt)
            case _:
                await self._perform_silently(action, attempt)
                return None
        return await self._unless_superseded(work)

    async def _obtain(self, attempt: Attempt) -> Event:
        event = await self._parts.download.run(attempt, self._enter)
        return self._parts.gate.admit(attempt) if event is Event.SEALED else event

    async def _perform_silently(self, action: Silent, attempt: Attempt) -> None:
        """The actions that no event follows on."""
        match action:
            case Action.RESTORE:
                await self._restore()
            case Action.QUARANTINE:
                self._parts.activation.quarantine(attempt)
            case Action.FORGIVE_ATTEMPT:
                if attempt.candidate is not None:
                    self._store.uncount_attempt(attempt.candidate)
            case Action.RETIRE:
                await self._parts.restorer.retire_active()
                self.restored, self.damaged = True, False
            case Action.DROP_ADAPTER:
                assert self._revoked_adapter is not None
                self._store.retire_adapter(self._revoked_adapter.digest)
            case Action.COLLECT:
                kept = (self._protected, self._parts.gate.kept)
                self._parts.collector.collect(self._settings, [each for each in kept if each is not None])
            case Action.TIDY:
                self._parts.collector.tidy()
            case _:
                assert_never(action)

    async def _unless_superseded(self, work: Awaitable[Event]) -> Event:
        task = asyncio.ensure_future(work)
        interruption = asyncio.create_task(self._superseded.wait())
        try:
            await asyncio.wait({task, interruption}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else Event.SUPERSEDED
        finally:
            for each in (task, interruption):
                each.cancel()
            await asyncio.gather(task, interruption, return_exceptions=True)

    # Going back.
    async def _restore(self) -> None:
        """Serve the active bundle unless it is being served."""
        fault = await self._parts.restorer.serve_recorded()
        self.restored = fault is None
        if fault is not None:
            self.damaged = isinstance(fault, BundleRefused)
            self._reporter.error = reported_error(fault)

    def _report_rollback(self, attempt: Attempt) -> Event:
        # A candidate that did not fail is tried again if it is still desired; its bytes need not be fetched again then.
        self._protected = attempt.candidate if attempt.failure is None else None
        left, target = self._store.bundle(attempt.candidate), attempt.known_target
        reference = target.reference if target is not None else None if left is None else left.reference
        active = self._store.bundle(self._store.snapshot().active)
        self._reporter.rolled_back(reference, active, attempt.failure, attempt.superseded_by)
        return Event.RESTORED


Silent = Literal[
    Action.RESTORE,
    Action.QUARANTINE,
    Action.FORGIVE_ATTEMPT,
    Action.RETIRE,
    Action.DROP_ADAPTER,
    Action.COLLECT,
    Action.TIDY,
]
