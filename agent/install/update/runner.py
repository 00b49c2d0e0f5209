"""Runs the state table for one target: records the next state, performs its actions, and feeds back their events.

Nothing here trusts a bundle (the installer's work) or loads one (a worker's).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Literal, assert_never

from msgspec import Struct

from agent.install.backoff import Backoff
from agent.install.desired import (
    DesiredBundle,
    Install,
    OperatorOrder,
    Repair,
    ReplaceRevoked,
    RequestedBy,
    Rollback,
    requested_by,
    revision_of,
)
from agent.install.gc import collect_bundles, collect_derived, collect_orphans, collect_parts
from agent.install.ports import Serving, Speed
from agent.install.prepack import Prepacker
from agent.install.process.client import Installer
from agent.install.process.messages import InstallJob, Job, Line, Progressed, Reached, Resolved, ReverifyJob
from agent.install.reporter import Reporter, reported_error, retry_error
from agent.install.settings import InstallSettings
from agent.install.update.canary_run import CanaryRun, Candidate, record_baseline, swap_mode, watch_probation
from agent.install.update.restore import Restorer
from agent.install.update.state_machine import Action, Event, State, step
from agent.install.update.step_reporter import StepReporter
from agent.state.audit import AuditLog, AuditRateLimiter
from agent.state.installation import Failure, InstallationState, InstalledBundle, Quarantined
from agent.state.layout import StateDirectory
from agent.worker.ports import WorkerStarter
from agent.worker.settings import WorkerSettings
from contract.causes import Cause
from contract.errors import (
    BundleRefused,
    EdgeBundleError,
    EngineFailed,
    SourceInvalid,
    SourceUnavailable,
    StoreBroken,
    StoreFull,
)
from contract.identifiers import Digest
from contract.reasons import Reason
from contract.system.durable import Disk

log = logging.getLogger("edge_agent.install")

HOUR = 3600


class Outcome(Struct, frozen=True):
    """How an update ended. ``later``: nothing is wrong with the target, try again; ``refused`` covers
    what was rolled back.

    ``retry_in``: the seconds after which to try again, for a target that stays until it is active.
    """

    kind: Literal["active", "refused", "later", "superseded"]
    error: EdgeBundleError | None = None
    retry_in: float = 0.0


class UpdateRunner:
    """Owns the state; ``run`` and ``restart`` are called one after the other, ``supersede`` at any time.

    ``backoff`` counts the failures of the current target.
    """

    def __init__(
        self,
        *,
        directory: StateDirectory,
        state: InstallationState,
        settings: InstallSettings,
        serving: Serving,
        workers: WorkerStarter,
        worker_settings: WorkerSettings,
        disk: Disk,
        installer: Installer,
        reporter: Reporter,
        prepacker: Prepacker | None = None,
        audit: AuditLog,
        audit_limiter: AuditRateLimiter,
    ) -> None:
        self._directory = directory
        self._store = state
        self._settings = settings
        self._serving = serving
        self._disk = disk
        self._installer = installer
        self._reporter = reporter
        self._restorer = Restorer(directory, state, serving, prepacker)
        self._steps = StepReporter(reporter, audit)
        self._canary_run = CanaryRun(
            directory=directory,
            serving=serving,
            workers=workers,
            worker_settings=worker_settings,
            restorer=self._restorer,
            steps=self._steps,
        )
        self._audit_limiter = audit_limiter
        snapshot = state.snapshot()
        self._state = State(snapshot.phase)
        self._candidate = snapshot.candidate
        self._failure = snapshot.failure
        self._target: DesiredBundle | None = None
        self._outcome = Outcome("superseded")
        self._superseded = asyncio.Event()
        self._superseded_by: RequestedBy | None = None
        self._progressed: Progressed | None = None
        self._fetching_since = 0.0
        self._protected: Digest | None = None
        self._canaried: Candidate | None = None
        self._baseline: Speed | None = None
        self._clock = asyncio.get_running_loop().time
        self.restored = False
        self.damaged = False
        self._advanced = False
        self._max_done = 0
        self.backoff = Backoff(settings.retry_first_seconds, settings.retry_longest_seconds)

    @property
    def state(self) -> State:
        return self._state

    async def run(self, target: DesiredBundle) -> Outcome:
        """Make the target active.

        Raises:
            StoreBroken, StoreFull: the state cannot be recorded; ``restart`` goes on from what was.
        """
        again = target is self._target and self._outcome.kind == "later"
        self._target = target
        self._settings = target.settings
        self._candidate = self._failure = self._canaried = self._protected = None
        self._outcome = Outcome("superseded")
        self._superseded.clear()
        self._superseded_by = self._progressed = None
        self._advanced = False
        self._max_done = self._max_done if again else 0
        self._reporter.begin(revision_of(target), again=again)
        if not again:
            self._steps.wanted(target)
        await self._run_table(Event.WANTED)
        if self._outcome.error is not None:
            meter = self._reporter.meter
            (meter.retried if self._outcome.kind == "later" else meter.failed)(self._outcome.error.reason)
        return self._outcome

    async def restart(self) -> None:
        """Go on from whatever is recorded, and serve the active bundle.

        ``restored`` says whether that worked, ``damaged`` that its bytes on this disk are not what they should be.

        Raises:
            StoreBroken, StoreFull.
        """
        await self._run_table(Event.RESTARTED)
        try:
            # What was being removed when the power failed; partial downloads stay.
            collect_orphans(self._store, self._directory, self._disk, parts_kept=None)
            self._collect_derived()
        except EdgeBundleError as error:
            log.warning("orphans could not be removed: %s", error.message)

    async def serve_recorded(self) -> None:
        """Serve the active bundle and record nothing, since the state cannot be written; ``restored`` and ``damaged``
        as :meth:`restart` has them.
        """
        await self._serve_active()
        self._reporter.publish()

    def free_space(self) -> None:
        """Remove what can be fetched or made again: nothing of it has to be recorded."""
        try:
            collect_parts(self._directory, self._disk)
            collect_derived(self._store, self._directory, self._disk)
        except EdgeBundleError as error:
            log.debug("no disk space could be freed: %s", error.message)

    async def retire(self) -> None:
        """Serve nothing from now on: what is active was revoked and there is nothing acceptable to go back to.

        Raises:
            StoreBroken, StoreFull.
        """
        self._store.retire_active()
        await self._serving.stop()
        self.restored, self.damaged = True, False
        self._reporter.publish()

    async def drop_adapter(self, adapter: InstalledBundle) -> None:
        """Serve the active bundle without ``adapter`` from now on: it was revoked.

        Raises:
            StoreBroken, StoreFull.
        """
        self._store.retire_adapter(adapter.digest)
        await self._restore()
        self._collect()
        self._reporter.publish()

    def reclaim(self) -> None:
        """Remove what an abandoned target left on this disk."""
        self._protected = None
        self._collect()

    def supersede(self, by: RequestedBy) -> None:
        """Another target, requested by ``by``, waits: abandon this one at the next safe point."""
        self._superseded_by = by
        self._superseded.set()

    async def _run_table(self, event: Event | None) -> None:
        try:
            while event is not None:
                actions = self._enter(event)
                event = None
                for action in actions:
                    event = await self._perform(action) or event
        except (StoreBroken, StoreFull):
            # A candidate that cannot be switched to must not keep what made room for it from answering.
            await self._serving.resume()
            raise
        # The last action may have changed the report.
        self._reporter.publish()

    def _enter(self, event: Event) -> tuple[Action, ...]:
        state, actions = step(self._state, event)
        if state is State.IDLE:
            self._candidate = None
        failure = self._failure if state is State.ROLLBACK else None
        if state is State.COMMIT and self._candidate is not None:
            self._store.enter_commit(state.value, self._candidate, back=isinstance(self._target, Rollback))
        else:
            self._store.enter(state.value, self._candidate, failure)
        self._state = state
        self._reporter.phase(state)
        return actions

    async def _perform(self, action: Action) -> Event | None:
        # What follows starts and ends processes; a test that cuts the power does it here, too.
        self._disk.effects.perform("action", action.value, lambda: None)
        match action:
            case Action.OBTAIN | Action.RUN_CANARY | Action.WATCH:
                work = {
                    Action.OBTAIN: self._download,
                    Action.RUN_CANARY: self._run_canary,
                    Action.WATCH: self._watch_probation,
                }[action]
                came = await self._unless_superseded(work())
                if came is Event.SUPERSEDED and self._candidate is not None and action is not Action.OBTAIN:
                    self._store.uncount_attempt(self._candidate)
                return came
            case Action.SWAP:
                return await self._swap()
            case Action.RESTORE:
                return await self._restore()
            case Action.COMMIT:
                return self._commit()
            case _:
                self._perform_local(action)
        return None

    def _perform_local(self, action: Action) -> None:
        # STOP_INSTALLER: it ended with the task that ran it. SCHEDULE_RETRY: the outcome tells the reconciler.
        if action is Action.QUARANTINE:
            self._quarantine()
        elif action is Action.COLLECT:
            self._collect()

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

    # RESOLVE to SEAL.
    async def _download(self) -> Event:
        target = self._target
        assert target is not None
        operator = requested_by(target) == "operator"
        # What this device's own operator asks for is written down in any case.
        suppressed = 0 if operator else self._audit_limiter.suppressed()
        job = job_of(target, self._directory, suppressed_refusals=suppressed)
        try:
            await self._installer(job, self._on_line)
        except BundleRefused as refused:
            if not operator:
                self._audit_limiter.consume()
            if refused.cause is Cause.DEVICE:
                return self._postpone(refused)
            self._refuse(refused)
            return Event.REFUSED
        except EdgeBundleError as error:
            if isinstance(error, SourceInvalid) and not operator:
                self._audit_limiter.consume()
            return self._postpone(error)
        if not operator:
            self._audit_limiter.consume()
        # The previous failure is over.
        self._reporter.error = None
        return Event.SEALED

    def _postpone(self, error: EdgeBundleError) -> Event:
        """Nothing is wrong with the bundle: it is tried again later."""
        target = self._target
        assert target is not None
        if requested_by(target) == "operator":
            # Who asked decides whether to ask again.
            self._outcome = Outcome("later", error)
            self._reporter.error = reported_error(error)
            self._steps.postponed(target, error, None)
            return Event.UNAVAILABLE
        if self._advanced:
            # It makes progress, if slowly.
            self.backoff.reset()
        delay = self.backoff.after_failure(error.retry_after if isinstance(error, SourceUnavailable) else None)
        self._outcome = Outcome("later", error, delay)
        self._reporter.error = retry_error(error, delay)
        self._steps.postponed(target, error, delay)
        return Event.UNAVAILABLE

    def _on_line(self, line: Line) -> None:
        match line:
            case Resolved():
                self._candidate = Digest(line.digest)
                self._fetching_since = self._clock()
                if self._target is not None:
                    self._steps.resolved(self._target, line)
                self._enter(Event.RESOLVED)
            case Reached(event) if event is not Event.SEALED:
                if event is Event.RESERVED:
                    self._fetching_since = self._clock()
                if event in (Event.FETCHED, Event.PRESENT) and self._target is not None:
                    self._steps.fetched(self._target, self._progressed, self._clock() - self._fetching_since)
                self._enter(event)
            case Progressed():
                self._progressed = line
                if line.done > self._max_done:
                    # Not what was fetched: a source that is wrong at one offset sends the bytes around it again.
                    self._max_done, self._advanced = line.done, True
                self._reporter.progress(line)

    def _refuse(self, refused: EdgeBundleError) -> None:
        target = self._target
        assert target is not None
        self._outcome = Outcome("refused", refused)
        self._reporter.error = reported_error(refused)
        self._steps.refused(target, refused)

    # CANARY to COMMIT.
    async def _run_canary(self) -> Event:
        digest, target = self._candidate, self._target
        assert digest is not None and target is not None
        by = requested_by(target)
        if by == "operator":
            self._store.release_quarantined(digest)
        elif by == "desired":
            # Neither a repair nor a security replacement waits for the limit.
            recent = self._store.swaps_between(int(time.time()) - HOUR, int(time.time()))
            limit = self._settings.swaps_per_hour
            if limit and len(recent) >= limit:
                error = EngineFailed(
                    f"{len(recent)} swaps in the last hour, {limit} are allowed", reason=Reason.SWAP_LIMIT
                )
                return self._postpone(error)
        if self._store.count_attempt(digest) > self._settings.max_attempts:
            return self._fail(
                Failure(
                    Reason.ATTEMPTS_EXHAUSTED,
                    f"activation failed {self._settings.max_attempts} times; giving up",
                )
            )
        began = self._clock()
        try:
            verdict = await self._canary_run.run_canary(digest, self._settings)
        except BundleRefused as refused:
            # This disk's fault, not the bundle's: it is obtained again.
            return self._postpone(refused)
        if isinstance(verdict, Failure):
            return self._fail(verdict)
        self._canaried = verdict
        self._steps.canary_passed(verdict.new, verdict.passed, self._clock() - began)
        return Event.CANARY_PASSED

    def _fail(self, failure: Failure) -> Event:
        self._failure = failure
        error = EngineFailed(failure.message, reason=failure.reason)
        self._outcome = Outcome("refused", error)
        self._reporter.error = reported_error(error)
        return Event.FAILED

    async def _swap(self) -> Event:
        tried, old = self._canaried, self._serving.bundle
        assert tried is not None
        self._baseline = record_baseline(self._serving, self._store, old)
        mode = swap_mode(self._serving, self._settings, tried) if old is not None else "drain"
        if tried.is_adapter:
            # Another engine may take turns where requests shared a batch: that is no verdict on the adapter.
            self._baseline = None
        self._store.log_swap(tried.new.digest, int(time.time()))
        try:
            report = await self._serving.swap(tried.loaded, mode)
            tried.check_unchanged()
        except EngineFailed as error:
            return self._fail(Failure(Reason.ENGINE_FAILED, error.message))
        except BundleRefused as refused:
            # It serves already, but from bytes that were not verified: roll back to the old one.
            return self._fail(Failure(refused.reason, refused.message))
        self._steps.swapped(old, tried.new, report)
        return Event.SWITCHED

    async def _watch_probation(self) -> Event:
        if self._canaried is not None:
            self._steps.on_probation(self._canaried.new, self._settings)
        failure = await watch_probation(self._serving, self._settings, self._baseline, self._reporter.probation)
        return Event.HELD if failure is None else self._fail(failure)

    def _commit(self) -> Event:
        assert self._candidate is not None
        # It is, already, unless an agent that did not do both at once was cut off in between.
        self._store.commit_candidate(self._candidate)
        bundle = self._store.bundle(self._candidate)
        assert bundle is not None
        self._outcome = Outcome("active")
        self.restored, self.damaged = True, False
        previous = self._store.bundle(self._store.snapshot().previous)
        # Nothing was counted for a bundle that does not answer now.
        counters = self._serving.counters() if self._canaried is not None else None
        self._steps.committed(self._target, bundle, previous, counters)
        return Event.COMMITTED

    # Going back.
    def _quarantine(self) -> None:
        failure, digest = self._failure, self._candidate
        if failure is None or digest is None:
            return
        bundle = self._store.bundle(digest)
        name, version = (bundle.name, bundle.version) if bundle else ("", "")
        self._store.quarantine(
            Quarantined(digest, name, version, failure.reason.value, failure.message, int(time.time()))
        )
        self._steps.quarantined(digest, bundle, failure)

    async def _restore(self) -> Event | None:
        """Serve the active bundle unless it is being served; in ROLLBACK, say so."""
        active = await self._serve_active()
        if self._state is not State.ROLLBACK:
            return None
        # A candidate that did not fail is tried again if it is still desired; its bytes need not be fetched again then.
        self._protected = self._candidate if self._failure is None else None
        left = self._store.bundle(self._candidate)
        reference = self._target.reference if self._target is not None else None if left is None else left.reference
        self._steps.rolled_back(reference, active, self._failure, self._superseded_by)
        return Event.RESTORED

    async def _serve_active(self) -> InstalledBundle | None:
        active = self._store.bundle(self._store.snapshot().active)
        if active is None:
            if self._serving.bundle is not None:
                await self._serving.stop()
            self.restored = True
        elif self._restorer.serves(active):
            self.restored = True
        else:
            fault = await self._restorer.serve_active(active)
            self.restored = fault is None
            if fault is not None:
                self.damaged = isinstance(fault, BundleRefused)
                self._reporter.error = reported_error(fault)
        return active

    def _collect(self) -> None:
        try:
            collect_bundles(
                self._store,
                self._directory,
                self._disk,
                keep_previous=self._settings.keep_previous,
                quota_bytes=self._settings.quota_bytes,
                protected=() if self._protected is None else (self._protected,),
            )
            collect_orphans(self._store, self._directory, self._disk, parts_kept=())
            self._collect_derived()
        except EdgeBundleError as error:
            # Tidying up failed; what is active is not affected, and the next installation tries again.
            log.warning("old bundles could not be removed: %s", error.message)

    def _collect_derived(self) -> None:
        """Remove prepacked weights that no worker maps: a bundle that is rolled back to gets its own again."""
        serving = self._serving.bundle
        serves = () if serving is None else (serving.digest,)
        collect_derived(self._store, self._directory, self._disk, kept=serves)
        self._restorer.discard_unused_prepacked()


def job_of(target: DesiredBundle, directory: StateDirectory, *, suppressed_refusals: int | None) -> Job:
    """What the installer process is sent for ``target``."""
    state_dir = str(directory.root)
    match target:
        case Rollback() | ReplaceRevoked():
            return ReverifyJob(
                state_dir,
                target.name,
                target.version,
                target.digest,
                allow_epoch=isinstance(target, Rollback) and target.allow_epoch,
                suppressed_refusals=suppressed_refusals,
            )
        case Install() | Repair():
            origin = target.origin if isinstance(target, Install) else None
            return InstallJob(
                state_dir,
                target.name,
                target.version,
                list(target.sources),
                quota_bytes=target.settings.quota_bytes,
                offline_grace=target.settings.offline_grace,
                parallel_fetches=target.settings.parallel_fetches,
                bytes_per_second=target.settings.download_bytes_per_second,
                ignore_quarantine=isinstance(origin, OperatorOrder),
                root=origin.root if isinstance(origin, OperatorOrder) else None,
                suppressed_refusals=suppressed_refusals,
            )
        case _:
            assert_never(target)
