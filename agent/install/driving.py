"""Drives the state table for one wish: records what is meant, does it, and feeds back what came of it.

Nothing here trusts a bundle (the installer's work) or loads one (a worker's).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Literal

from msgspec import Struct

from agent.install.backoff import Backoff
from agent.install.collection import collect_bundles, collect_derived, collect_parts, collect_strays
from agent.install.delivery import Installer
from agent.install.deriving import Deriver
from agent.install.job import Job, Line, Progressed, Reached, Resolved
from agent.install.machine import Action, Event, State, step
from agent.install.ports import Serving, Speed
from agent.install.reporting import Reporter, reported_error, retry_error
from agent.install.restoring import Restoring
from agent.install.settings import InstallSettings
from agent.install.telling import Telling
from agent.install.trial import Candidate, Trial, remember_speed, swap_mode, watch
from agent.install.wishes import WantedBy, Wish
from agent.state.audit import AuditLog, RefusalRation
from agent.state.installation import Failure, InstallationState, InstalledBundle, Quarantined
from agent.state.layout import StateDirectory
from agent.worker.ports import WorkerStarter
from agent.worker.settings import WorkerSettings
from contract.causes import Cause
from contract.durable import Disk
from contract.errors import (
    BundleRefused,
    EdgeBundleError,
    EngineFailed,
    SourceInvalid,
    SourceUnavailable,
    StoreBroken,
    StoreFull,
)
from contract.names import Digest
from contract.reasons import Reason

log = logging.getLogger("edge_agent.install")

HOUR = 3600


class Outcome(Struct, frozen=True):
    """How a wish ended. ``later``: nothing is wrong with it, try again; ``refused`` covers what was rolled back.

    ``retry_in``: the seconds after which to try again, for a wish that stands until it is fulfilled.
    """

    kind: Literal["active", "refused", "later", "superseded"]
    error: EdgeBundleError | None = None
    retry_in: float = 0.0


class Driver:
    """Owns the state; ``pursue`` and ``restart`` are called one after the other, ``supersede`` at any time.

    ``backoff`` counts the failures of the wish that is pursued.
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
        deriver: Deriver | None = None,
        audit: AuditLog,
        ration: RefusalRation,
    ) -> None:
        self._directory = directory
        self._store = state
        self._settings = settings
        self._serving = serving
        self._disk = disk
        self._installer = installer
        self._reporter = reporter
        self._restoring = Restoring(directory, state, serving, deriver)
        self._telling = Telling(reporter, audit)
        self._trial = Trial(
            directory=directory,
            serving=serving,
            workers=workers,
            worker_settings=worker_settings,
            restoring=self._restoring,
            telling=self._telling,
        )
        self._ration = ration
        snapshot = state.snapshot()
        self._state = State(snapshot.phase)
        self._candidate = snapshot.candidate
        self._failure = snapshot.failure
        self._wish: Wish | None = None
        self._outcome = Outcome("superseded")
        self._superseded = asyncio.Event()
        self._superseded_by: WantedBy | None = None
        self._progressed: Progressed | None = None
        self._fetching_since = 0.0
        self._spared: Digest | None = None
        self._tried: Candidate | None = None
        self._predecessor_speed: Speed | None = None
        self._clock = asyncio.get_running_loop().time
        self.restored = False
        self.damaged = False
        self._advanced = False
        self._furthest = 0
        self.backoff = Backoff(settings.retry_first_seconds, settings.retry_longest_seconds)

    @property
    def state(self) -> State:
        return self._state

    async def pursue(self, wish: Wish) -> Outcome:
        """Do what it takes to make the wished bundle active.

        Raises:
            StoreBroken, StoreFull: the state cannot be recorded; ``restart`` goes on from what was.
        """
        again = wish is self._wish and self._outcome.kind == "later"
        self._wish = wish
        self._settings = wish.settings
        self._candidate = self._failure = self._tried = self._spared = None
        self._outcome = Outcome("superseded")
        self._superseded.clear()
        self._superseded_by = self._progressed = None
        self._advanced = False
        self._furthest = self._furthest if again else 0
        self._reporter.begin(wish.revision, again=again)
        if not again:
            self._telling.wanted(wish)
        await self._drive(Event.WANTED)
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
        await self._drive(Event.RESTARTED)
        try:
            # What was being removed when the power went; bytes on their way stay.
            collect_strays(self._store, self._directory, self._disk, parts_kept=None)
            self._collect_derived()
        except EdgeBundleError as error:
            log.warning("strays could not be removed: %s", error.message)

    async def serve_recorded(self) -> None:
        """Serve the active bundle and record nothing, since the state cannot be written; ``restored`` and ``damaged``
        as :meth:`restart` has them.
        """
        await self._serve_active()
        self._reporter.tell()

    def make_room(self) -> None:
        """Remove what can be had again: nothing of it has to be recorded."""
        try:
            collect_parts(self._directory, self._disk)
            collect_derived(self._store, self._directory, self._disk)
        except EdgeBundleError as error:
            log.debug("no room could be made: %s", error.message)

    async def retire(self) -> None:
        """Serve nothing from now on: what is active was revoked and there is nothing acceptable to go back to.

        Raises:
            StoreBroken, StoreFull.
        """
        self._store.retire_active()
        await self._serving.stop()
        self.restored, self.damaged = True, False
        self._reporter.tell()

    async def drop_adapter(self, adapter: InstalledBundle) -> None:
        """Serve the active bundle without ``adapter`` from now on: it was revoked.

        Raises:
            StoreBroken, StoreFull.
        """
        self._store.retire_adapter(adapter.digest)
        await self._restore()
        self._collect()
        self._reporter.tell()

    def reclaim(self) -> None:
        """Remove what a wish that is not followed any more left here."""
        self._spared = None
        self._collect()

    def supersede(self, by: WantedBy) -> None:
        """Another wish of ``by`` waits: leave this one at the next place where that is safe."""
        self._superseded_by = by
        self._superseded.set()

    async def _drive(self, event: Event | None) -> None:
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
        # The last action may have brought news.
        self._reporter.tell()

    def _enter(self, event: Event) -> tuple[Action, ...]:
        state, actions = step(self._state, event)
        if state is State.IDLE:
            self._candidate = None
        failure = self._failure if state is State.ROLLBACK else None
        if state is State.COMMIT and self._candidate is not None:
            self._store.enter_commit(state.value, self._candidate, back=self._wish is not None and self._wish.back)
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
                    Action.OBTAIN: self._obtain,
                    Action.RUN_CANARY: self._run_canary,
                    Action.WATCH: self._watch,
                }[action]
                came = await self._unless_superseded(work())
                if came is Event.SUPERSEDED and self._candidate is not None and action is not Action.OBTAIN:
                    self._store.forgive_attempt(self._candidate)
                return came
            case Action.SWAP:
                return await self._swap()
            case Action.RESTORE:
                return await self._restore()
            case Action.COMMIT:
                return self._commit()
            case _:
                self._tidy(action)
        return None

    def _tidy(self, action: Action) -> None:
        # STOP_INSTALLER: it ended with the task that ran it. SCHEDULE_RETRY: the outcome tells the coordinator.
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
    async def _obtain(self) -> Event:
        wish = self._wish
        assert wish is not None
        job = Job(
            state_dir=str(self._directory.root),
            name=wish.name,
            version=wish.version,
            sources=list(wish.sources),
            quota_bytes=self._settings.quota_bytes,
            offline_grace=self._settings.offline_grace,
            parallel_fetches=self._settings.parallel_fetches,
            bytes_per_second=self._settings.download_bytes_per_second,
            despite_quarantine=wish.operator,
            digest=wish.digest,
            allow_epoch=wish.allow_epoch,
            root=wish.root,
            # What this device's own operator asks for is written down in any case.
            refusals_unsaid=0 if wish.operator else self._ration.unsaid(),
        )
        try:
            await self._installer(job, self._hear)
        except BundleRefused as refused:
            if not wish.operator:
                self._ration.spend()
            if refused.cause is Cause.DEVICE:
                return self._postpone(refused)
            self._refuse(refused)
            return Event.REFUSED
        except EdgeBundleError as error:
            if isinstance(error, SourceInvalid) and not wish.operator:
                self._ration.spend()
            return self._postpone(error)
        if not wish.operator:
            self._ration.spend()
        # Whatever kept it away before is over.
        self._reporter.error = None
        return Event.SEALED

    def _postpone(self, error: EdgeBundleError) -> Event:
        """Nothing is wrong with the bundle: it is tried again later."""
        wish = self._wish
        assert wish is not None
        if wish.operator:
            # Who asked decides whether to ask again.
            self._outcome = Outcome("later", error)
            self._reporter.error = reported_error(error)
            self._telling.postponed(wish, error, None)
            return Event.UNAVAILABLE
        if self._advanced:
            # It goes forward, if slowly.
            self.backoff.reset()
        delay = self.backoff.after_failure(error.retry_after if isinstance(error, SourceUnavailable) else None)
        self._outcome = Outcome("later", error, delay)
        self._reporter.error = retry_error(error, delay)
        self._telling.postponed(wish, error, delay)
        return Event.UNAVAILABLE

    def _hear(self, line: Line) -> None:
        match line:
            case Resolved():
                self._candidate = Digest(line.digest)
                self._fetching_since = self._clock()
                if self._wish is not None:
                    self._telling.resolved(self._wish, line)
                self._enter(Event.RESOLVED)
            case Reached(event) if event is not Event.SEALED:
                if event is Event.RESERVED:
                    self._fetching_since = self._clock()
                if event in (Event.FETCHED, Event.PRESENT) and self._wish is not None:
                    self._telling.fetched(self._wish, self._progressed, self._clock() - self._fetching_since)
                self._enter(event)
            case Progressed():
                self._progressed = line
                if line.done > self._furthest:
                    # Not what was fetched: a source that is wrong in one place has the same bytes around it come again.
                    self._furthest, self._advanced = line.done, True
                self._reporter.progress(line)

    def _refuse(self, refused: EdgeBundleError) -> None:
        wish = self._wish
        assert wish is not None
        self._outcome = Outcome("refused", refused)
        self._reporter.error = reported_error(refused)
        self._telling.refused(wish, refused)

    # CANARY to COMMIT.
    async def _run_canary(self) -> Event:
        digest, wish = self._candidate, self._wish
        assert digest is not None and wish is not None
        if wish.operator:
            self._store.release(digest)
        elif not wish.urgent:
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
                    f"it was tried {self._settings.max_attempts} times and never came through",
                )
            )
        began = self._clock()
        try:
            verdict = await self._trial.run_canary(digest, self._settings)
        except BundleRefused as refused:
            # This disk's fault, not the bundle's: it is obtained again.
            return self._postpone(refused)
        if isinstance(verdict, Failure):
            return self._fail(verdict)
        self._tried = verdict
        self._telling.canary_passed(verdict.new, verdict.passed, self._clock() - began)
        return Event.CANARY_PASSED

    def _fail(self, failure: Failure) -> Event:
        self._failure = failure
        error = EngineFailed(failure.message, reason=failure.reason)
        self._outcome = Outcome("refused", error)
        self._reporter.error = reported_error(error)
        return Event.FAILED

    async def _swap(self) -> Event:
        tried, old = self._tried, self._serving.bundle
        assert tried is not None
        self._predecessor_speed = remember_speed(self._serving, self._store, old)
        mode = swap_mode(self._serving, self._settings, tried) if old is not None else "drain"
        if tried.is_adapter:
            # Another engine may take turns where requests shared a batch: that is no verdict on the adapter.
            self._predecessor_speed = None
        self._store.log_swap(tried.new.digest, int(time.time()))
        try:
            report = await self._serving.swap(tried.loaded, mode)
            tried.check_unchanged()
        except EngineFailed as error:
            return self._fail(Failure(Reason.ENGINE_FAILED, error.message))
        except BundleRefused as refused:
            # It answers already, but with what nobody verified: the old one comes back.
            return self._fail(Failure(refused.reason, refused.message))
        self._telling.swapped(old, tried.new, report)
        return Event.SWITCHED

    async def _watch(self) -> Event:
        if self._tried is not None:
            self._telling.on_probation(self._tried.new, self._settings)
        failure = await watch(self._serving, self._settings, self._predecessor_speed)
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
        counters = self._serving.counters() if self._tried is not None else None
        self._telling.committed(self._wish, bundle, previous, counters)
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
        self._telling.quarantined(digest, bundle, failure)

    async def _restore(self) -> Event | None:
        """Serve the active bundle unless it is being served; in ROLLBACK, say so."""
        active = await self._serve_active()
        if self._state is not State.ROLLBACK:
            return None
        # A candidate that did not fail is tried again if anybody still wants it; its bytes need not come again then.
        self._spared = self._candidate if self._failure is None else None
        left = self._store.bundle(self._candidate)
        reference = self._wish.reference if self._wish is not None else None if left is None else left.reference
        self._telling.rolled_back(reference, active, self._failure, self._superseded_by)
        return Event.RESTORED

    async def _serve_active(self) -> InstalledBundle | None:
        active = self._store.bundle(self._store.snapshot().active)
        if active is None:
            if self._serving.bundle is not None:
                await self._serving.stop()
            self.restored = True
        elif self._restoring.serves(active):
            self.restored = True
        else:
            fault = await self._restoring.serve_active(active)
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
                protected=() if self._spared is None else (self._spared,),
            )
            collect_strays(self._store, self._directory, self._disk, parts_kept=())
            self._collect_derived()
        except EdgeBundleError as error:
            # Tidying up failed; what is active is not affected, and the next installation tries again.
            log.warning("old bundles could not be removed: %s", error.message)

    def _collect_derived(self) -> None:
        """Remove prepacked weights that no worker maps: a bundle that is gone back to by hand gets its own anew."""
        serving = self._serving.bundle
        serves = () if serving is None else (serving.digest,)
        collect_derived(self._store, self._directory, self._disk, kept=serves)
        self._restoring.tidy()
