"""Reconciles the device with its desired state: the latest desired bundle wins, what failed is retried for as long as
it is desired, what was refused is not.

:mod:`agent.install.update.runner` does the work. Whatever may be abandoned safely is abandoned when another target
arrives; a switch, a commit or a rollback is finished first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from agent.install.desired import DesiredBundle, Repair, read_desired, revision_in, revision_of
from agent.install.ports import Serving
from agent.install.prepack import Prepacker
from agent.install.process.client import Installer, run_installer
from agent.install.reporter import OnEvent, OnReported, Reporter, reported_error
from agent.install.settings import InstallSettings
from agent.install.trust.monitor import RefreshResult, TrustMonitor
from agent.install.update.runner import Outcome, UpdateRunner
from agent.install.update.state_machine import State
from agent.state.audit import AuditLog, AuditRateLimiter, suppressed_text
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.layout import StateDirectory
from agent.telemetry.installs import InstallMeter
from agent.worker.ports import WorkerStarter
from agent.worker.settings import WorkerSettings
from contract.errors import BundleRefused, EdgeBundleError, EngineFailed, StoreBroken, StoreFull
from contract.mqtt.messages import Reported, ReportedError
from contract.reasons import Reason
from contract.source.access import Source
from contract.system.durable import Disk

log = logging.getLogger("edge_agent.install")

DEBOUNCE_SECONDS = 0.2
"""A new desired document is read at most this often: a flood costs one read per interval."""

RECORD_RETRY_SECONDS = 2.0
"""A desired document that could not be recorded is tried again after this time."""

RESTORE_RETRY_SECONDS = 30.0
"""When the active bundle cannot be served or the state cannot be written: how long until it is tried again."""


FAULT = EngineFailed("the device failed at this document; its log says why", reason=Reason.INTERNAL_ERROR)


class Reconciler:
    """The only one that changes what this device runs.

    ``set_desired`` may be called at any time in the event loop; ``start_active`` once, before ``run``; ``execute`` runs
    one order to its end, beside ``run`` or without it. ``on_reported`` and ``on_event`` must not block.
    """

    def __init__(
        self,
        *,
        directory: StateDirectory,
        state: InstallationState,
        settings: InstallSettings,
        sources: Mapping[str, Source],
        serving: Serving,
        workers: WorkerStarter,
        worker_settings: WorkerSettings,
        on_reported: OnReported,
        on_event: OnEvent,
        disk: Disk | None = None,
        installer: Installer = run_installer,
        prepacker: Prepacker | None = None,
    ) -> None:
        self._store = state
        self._settings = settings
        self._sources = dict(sources)
        loop = asyncio.get_running_loop()
        self._reporter = Reporter(state, on_reported, on_event, loop.time)
        self._audit = AuditLog(directory.audit, disk or Disk(), "agent")
        self._audit_limiter = AuditRateLimiter(loop.time)
        self._runner = UpdateRunner(
            directory=directory,
            state=state,
            settings=settings,
            serving=serving,
            workers=workers,
            worker_settings=worker_settings,
            disk=disk or Disk(),
            installer=installer,
            reporter=self._reporter,
            prepacker=prepacker,
            audit=self._audit,
            audit_limiter=self._audit_limiter,
        )
        self._trust_monitor = TrustMonitor(
            state_dir=str(directory.root),
            state=state,
            settings=settings,
            sources=self._sources,
            installer=installer,
            runner=self._runner,
            reporter=self._reporter,
            audit=self._audit,
        )
        self._pending: bytes | None = None
        self._target: DesiredBundle | None = None
        self._orders: list[tuple[DesiredBundle, asyncio.Future[Outcome]]] = []
        self._refresh_requests: list[tuple[tuple[Source, ...], asyncio.Future[EdgeBundleError | None]]] = []
        self._unlisted_in: dict[str, int] | None = None
        self._rejected: tuple[str | None, ReportedError] | None = None
        self._withdrawn = False
        self._not_before = float("-inf")
        self._asked_again = False
        self._restore_at = float("inf")
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()

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
        unwritable = self._store.unwritable
        own = [] if unwritable is None else [str(unwritable.reason)]
        unread = [str(Reason.STORED_DATA_INVALID)] if self._store.set_aside() else []
        return sorted({*self._trust_monitor.reasons, *own, *unread})

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

    @contextmanager
    def observed(self, observer: OnReported) -> Iterator[None]:
        """``observer`` is called with what is reported, too, while the block runs."""
        self._reporter.observers.append(observer)
        try:
            yield
        finally:
            self._reporter.observers.remove(observer)

    def set_desired(self, payload: bytes, *, repeated: bool = False) -> None:
        """A ``desired`` document arrived; only the latest counts.

        ``repeated``: the broker's retained copy, after a connection; somebody who publishes the same document again
        wants it tried now.
        """
        self._pending = payload
        self._asked_again = self._asked_again or not repeated
        self._arrived.set()

    async def start_active(self) -> None:
        """Bring an interrupted installation to a safe end and serve the active bundle, completely verified.

        Raises:
            StoreBroken, StoreFull.
        """
        self._report_set_aside()
        snapshot = self._store.snapshot()
        if snapshot.desired is not None and not snapshot.overridden:
            try:
                self._reporter.revision = revision_in(snapshot.desired)
                self._adopt(snapshot.desired)
            except Exception as error:
                if isinstance(error, StoreBroken | StoreFull):
                    raise
                # It is stored, so it would keep every start from coming through.
                self._target = None
                self._report_fault()
        if self._store.unwritable is not None:
            await self._serve_recorded()
            return
        try:
            await self._restart()
        except Exception as error:
            if isinstance(error, EdgeBundleError):
                raise
            self._report_fault()
            self._restore_at = asyncio.get_running_loop().time() + RESTORE_RETRY_SECONDS
        active = self._store.bundle(self._store.snapshot().active)
        if self._runner.damaged and self._target is None and active is not None:
            # Nothing is desired just now, but this is what the device is meant to run.
            self._target = self._repair_of(active)

    async def _restart(self) -> None:
        await self._runner.restart()
        now = asyncio.get_running_loop().time()
        self._restore_at = float("inf") if self._runner.restored else now + RESTORE_RETRY_SECONDS

    async def _serve_recorded(self) -> None:
        """Nothing can be recorded: what is active answers, and nothing is begun."""
        if self._store.unwritable is not None and self._store.unwritable.reason is Reason.STORE_FULL:
            self._runner.free_space()
        await self._runner.serve_recorded()
        now = asyncio.get_running_loop().time()
        self._restore_at = float("inf") if self._runner.restored else now + RESTORE_RETRY_SECONDS

    def recovered(self) -> None:
        """What happens can be recorded again: go on as after a start."""
        self._restore_at = float("-inf")
        self._changed.set()
        self._reporter.publish()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive_desired(), name="desired documents")
            group.create_task(self._work(), name="installation")

    async def execute(self, target: DesiredBundle) -> Outcome:
        """Execute an order of this device's operator, before anything else; how it ended.

        Once it is done, a ``desired`` document that came earlier is not followed any more.
        """
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._orders.append((target, outcome))
        self._runner.supersede("operator")
        self._changed.set()
        return await outcome

    async def refresh_trust(self, sources: Sequence[Source] = ()) -> None:
        """Refresh trust from the sources, as soon as nothing is being installed; revoked bundles are handled as the
        policy demands. ``sources``: others than those that are configured.

        Raises:
            EdgeBundleError: they could not be reached, or their metadata is refused.
        """
        result: asyncio.Future[EdgeBundleError | None] = asyncio.get_running_loop().create_future()
        self._refresh_requests.append((tuple(sources), result))
        self._changed.set()
        problem = await result
        if problem is not None:
            raise problem

    async def _receive_desired(self) -> None:
        last_error = ""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            payload, self._pending = self._pending, None
            asked, self._asked_again = self._asked_again, False
            if payload is not None:
                try:
                    self._consider(payload, again=asked)
                except (StoreBroken, StoreFull) as error:
                    if error.message != last_error:
                        log.warning("a desired document could not be recorded: %s", error.message)
                    last_error = error.message
                    self._pending = self._pending or payload
                    self._asked_again = self._asked_again or asked
                    self._arrived.set()
                    self._reporter.error = reported_error(error)
                    self._reporter.publish()
                    await asyncio.sleep(RECORD_RETRY_SECONDS)
                except Exception:
                    # The broker keeps the document and sends it again at every connection and every start.
                    self._report_fault()
            await asyncio.sleep(DEBOUNCE_SECONDS)

    def _report_set_aside(self) -> None:
        """Report what of the state could not be read, once."""
        try:
            found = self._store.newly_set_aside()
        except (StoreBroken, StoreFull):
            # Then at a start when it can be recorded that it was reported.
            return
        for each in found:
            text = f"{each.source} of state.db was set aside: {each.reason}"
            log.warning("%s", text)
            self._reporter.event("refused", {"bundle": None, "reason": Reason.STORED_DATA_INVALID, "message": text})

    def _report_fault(self) -> None:
        """Report the exception that is being handled, and go on."""
        log.exception("the installation failed by a fault of this agent")
        self._reporter.error = reported_error(FAULT)
        try:
            self._reporter.publish()
        except Exception:
            log.exception("it cannot be reported")

    def _consider(self, payload: bytes, *, again: bool) -> None:
        snapshot = self._store.snapshot()
        rejected, self._rejected = self._rejected, None
        if payload == (snapshot.desired or b""):
            idle = self._runner.state is State.IDLE
            unfinished = self._target is not None or self._reporter.error is not None
            if (again or rejected is not None) and unfinished and payload and not snapshot.overridden and idle:
                self._try_now(payload)
            elif rejected is not None:
                # What was wrong with the document before is over.
                self._reporter.revision, self._reporter.error = revision_in(payload), None
            self._reporter.publish()
            return
        try:
            read_desired(payload, self._settings, self._sources)
        except BundleRefused as refused:
            self._reject(payload, refused)
            return
        self._store.record_desired(payload or None)
        self._adopt(payload)
        self._withdrawn = not payload
        self._runner.supersede("desired")
        self._changed.set()

    def _try_now(self, payload: bytes) -> None:
        """The same document was published again: neither wait for the next attempt, nor take the last refusal for
        final.
        """
        if self._target is None:
            self._adopt(payload)
        self._runner.backoff.reset()
        self._not_before = float("-inf")
        self._changed.set()

    def _adopt(self, payload: bytes) -> None:
        """Make an accepted document the target."""
        try:
            self._target = read_desired(payload, self._settings, self._sources)
        except BundleRefused as refused:
            # It was accepted under an older configuration.
            self._target = None
            self._reject(payload, refused)
            return
        self._runner.backoff.reset()
        self._not_before = float("-inf")
        self._unlisted_in = None
        if self._target is None:
            self._reporter.begin(None)

    def _reject(self, payload: bytes, refused: BundleRefused) -> None:
        """Report it; a target that is being installed goes on, since whoever sent this may not be its author."""
        detail = {"reason": refused.reason, "message": refused.message, "revision": revision_in(payload)}
        self._reporter.meter.failed(refused.reason)
        self._reporter.event("refused", detail)
        suppressed = self._audit_limiter.suppressed()
        self._audit_limiter.consume()
        if suppressed is not None:
            self._audit.note(
                "refused",
                revision=detail["revision"],
                reason=refused.reason,
                message=refused.message + suppressed_text(suppressed),
            )
        if self._runner.state is State.IDLE:
            self._reporter.begin(revision_in(payload))
        self._reporter.error = reported_error(refused)
        self._rejected = (revision_in(payload), self._reporter.error)
        self._reporter.publish()

    def _report_rejected(self) -> None:
        """The target is active, but the broker retains a later document that was refused."""
        if self._rejected is not None:
            self._reporter.revision, self._reporter.error = self._rejected
            self._reporter.publish()

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            try:
                if self._store.unwritable is not None:
                    await self._wait_until_writable(self._store.unwritable)
                    continue
                if clock() >= self._restore_at:
                    await self._restart()
                await self._next_step()
                if not self._runner.restored:
                    # A rollback found that the old bundle does not load just now.
                    self._restore_at = min(self._restore_at, clock() + RESTORE_RETRY_SECONDS)
                if not self._orders and (self._refresh_requests or clock() >= self._trust_monitor.due):
                    await self._refresh_trust()
                    self._changed.set()
            except (StoreBroken, StoreFull) as error:
                log.warning("the installation state cannot be written: %s", error.message)
                self._restore_at = self._not_before = clock() + RESTORE_RETRY_SECONDS
                self._fail_refresh_requests(error)
            except Exception:
                self._report_fault()
                # Where it stands is recorded; it goes on from there, as after a restart, but not at once for ever.
                self._restore_at = self._not_before = clock() + max(
                    RESTORE_RETRY_SECONDS, self._runner.backoff.after_failure()
                )
            if self._orders:
                continue
            due = min(self._restore_at, self._trust_monitor.due)
            if self._target is not None:
                due = min(due, self._not_before)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if due == float("inf") else due):
                    await self._changed.wait()

    async def _wait_until_writable(self, unwritable: StoreFull | StoreBroken) -> None:
        """Until what happens can be recorded nothing is done, except that a model that does not load is tried again."""
        for _, future in self._orders:
            if not future.done():
                future.set_result(Outcome("later", unwritable))
        self._orders.clear()
        self._fail_refresh_requests(unwritable)
        if asyncio.get_running_loop().time() >= self._restore_at:
            await self._serve_recorded()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(None if self._restore_at == float("inf") else self._restore_at):
                await self._changed.wait()

    def _fail_refresh_requests(self, error: EdgeBundleError) -> None:
        for _, asked in self._refresh_requests:
            if not asked.done():
                asked.set_result(error)
        self._refresh_requests.clear()

    async def _refresh_trust(self) -> None:
        """Refresh trust, for the first request that waits or because it is due."""
        sources, asked = self._refresh_requests[0] if self._refresh_requests else ((), None)
        result = RefreshResult(True, FAULT)
        try:
            result = await self._trust_monitor.refresh(self._changed, sources)
        except EdgeBundleError as error:
            result = RefreshResult(True, error)
            raise
        finally:
            if asked is not None and result.done:
                self._refresh_requests.pop(0)
                if not asked.done():
                    asked.set_result(result.problem)
        if self._unlisted_in is not None and self._unlisted_in != self._store.role_versions():
            self._retry_unlisted()

    def _retry_unlisted(self) -> None:
        """The desired bundle was not listed, and newer metadata has arrived: a cache may have lagged the publisher."""
        self._unlisted_in = None
        desired = self._store.snapshot().desired
        if self._target is None and desired is not None and not self._store.snapshot().overridden:
            self._adopt(desired)
            self._changed.set()

    async def _next_step(self) -> None:
        clock = asyncio.get_running_loop().time
        if self._orders:
            await self._execute_order(*self._orders.pop(0))
            return
        target = self._target
        if self._withdrawn:
            self._withdrawn = False
            self._runner.reclaim()
        if target is None or clock() < self._not_before:
            damaged = self._trust_monitor.next_damaged() if target is None else None
            if damaged is not None:
                self._repair(damaged)
            elif await self._trust_monitor.replace_revoked():
                self._changed.set()
            self._reporter.publish()
            return
        outcome = await self._apply(target)
        self._trust_monitor.report_new_warnings()
        if self._target is not target:
            return
        if outcome.kind == "later":
            self._not_before = clock() + outcome.retry_in
        elif outcome.kind != "superseded":
            self._target = None
            self._runner.backoff.reset()
            if outcome.kind == "active":
                self._restore_at = float("inf")
                self._report_rejected()
            elif outcome.error is not None and outcome.error.reason is Reason.NOT_LISTED:
                self._unlisted_in = self._store.role_versions()
                self._trust_monitor.refresh_soon()
            # Without a target left, what was found revoked may have to be replaced.
            self._changed.set()

    def _repair(self, damaged: InstalledBundle) -> None:
        """Obtain what is active once more, while it serves on from what it has loaded."""
        self._runner.damaged = True
        self._target = self._repair_of(damaged)
        self._changed.set()

    def _repair_of(self, damaged: InstalledBundle) -> Repair:
        sources, revision = tuple(self._sources.values()), self._reporter.revision
        return Repair(damaged.name, damaged.version, self._settings, sources=sources, revision=revision)

    async def _execute_order(self, order: DesiredBundle, future: asyncio.Future[Outcome]) -> None:
        older = self._target
        outcome = Outcome("later", FAULT)
        try:
            outcome = await self._apply(order)
        except (StoreBroken, StoreFull) as error:
            outcome = Outcome("later", error)
            raise
        finally:
            if not future.done():
                future.set_result(outcome)
        if outcome.kind == "active":
            self._restore_at = float("inf")
        if outcome.kind == "active" and self._target is older:
            self._store.override_desired()
            self._target = None
            self._withdrawn = True
            self._changed.set()

    async def _apply(self, target: DesiredBundle) -> Outcome:
        active = self._store.bundle(self._store.snapshot().active)
        in_force = [active, *self._store.adapters_of(active.digest)] if active is not None else []
        if any(each.reference == target.reference for each in in_force) and not self._runner.damaged:
            self._reporter.begin(revision_of(target))
            self._reporter.publish()
            return Outcome("active")
        outcome = await self._runner.run(target)
        if outcome.kind == "active":
            self._trust_monitor.repaired(self._store.snapshot().active)
        return outcome
