"""Decides what is to be done: the latest wish wins, what failed is retried for as long as it is wished for, what was
refused is not.

The doing is :mod:`agent.install.driving`'s. Whatever may be abandoned safely is abandoned when another wish arrives;
a switch, a commit or a rollback is finished first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from agent.install.delivery import Installer, run_installer
from agent.install.deriving import Deriver
from agent.install.driving import Driver, Outcome
from agent.install.machine import State
from agent.install.ports import Serving
from agent.install.reporting import OnEvent, OnReported, Reporter, reported_error
from agent.install.settings import InstallSettings
from agent.install.watch import Looked, Watch
from agent.install.wishes import Wish, read_desired, revision_of
from agent.state.audit import AuditLog, RefusalRation, unsaid_text
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.layout import StateDirectory
from agent.telemetry.installs import InstallMeter
from agent.worker.ports import WorkerStarter
from agent.worker.settings import WorkerSettings
from contract.durable import Disk
from contract.errors import BundleRefused, EdgeBundleError, EngineFailed, StoreBroken, StoreFull
from contract.mqtt.messages import Reported, ReportedError
from contract.reasons import Reason
from contract.source.access import Source

log = logging.getLogger("edge_agent.install")

WISH_SECONDS = 0.2
"""At most this often is a new desired document looked at: a flood costs one glance per interval."""

RECORD_SECONDS = 2.0
"""A desired document that the disk would not take is tried again so much later."""

RESTORE_SECONDS = 30.0
"""When the active bundle cannot be served or the state cannot be written: how long until it is tried again."""


FAULT = EngineFailed("the device failed at this document; its log says why", reason=Reason.INTERNAL_ERROR)


class Coordinator:
    """The only one that changes what this device runs.

    ``desire`` may be called at any time in the event loop; ``start_active`` once, before ``run``; ``carry_out`` does
    one wish to its end, beside ``run`` or without it. ``on_reported`` and ``on_event`` must not block.
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
        deriver: Deriver | None = None,
    ) -> None:
        self._store = state
        self._settings = settings
        self._sources = dict(sources)
        loop = asyncio.get_running_loop()
        self._reporter = Reporter(state, on_reported, on_event, loop.time)
        self._audit = AuditLog(directory.audit, disk or Disk(), "agent")
        self._ration = RefusalRation(loop.time)
        self._driver = Driver(
            directory=directory,
            state=state,
            settings=settings,
            serving=serving,
            workers=workers,
            worker_settings=worker_settings,
            disk=disk or Disk(),
            installer=installer,
            reporter=self._reporter,
            deriver=deriver,
            audit=self._audit,
            ration=self._ration,
        )
        self._watch = Watch(
            state_dir=str(directory.root),
            state=state,
            settings=settings,
            sources=self._sources,
            installer=installer,
            driver=self._driver,
            reporter=self._reporter,
            audit=self._audit,
        )
        self._pending: bytes | None = None
        self._wish: Wish | None = None
        self._orders: list[tuple[Wish, asyncio.Future[Outcome]]] = []
        self._looks: list[tuple[tuple[Source, ...], asyncio.Future[EdgeBundleError | None]]] = []
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
        return sorted({*self._watch.reasons, *own, *unread})

    @property
    def phase(self) -> State:
        """Where the installation stands."""
        return self._driver.state

    @property
    def meter(self) -> InstallMeter:
        """What became of bundles since the start."""
        return self._reporter.meter

    @property
    def expiry(self) -> dict[str, int]:
        """When the metadata of each role expires, Unix seconds. Raises StoreBroken."""
        return self._store.standing.expiry()

    @property
    def revoked(self) -> bool:
        """Whether what is active was revoked by its publisher. Raises StoreBroken."""
        return self._store.snapshot().active in self._store.standing.revoked()

    @contextmanager
    def observed(self, observer: OnReported) -> Iterator[None]:
        """``observer`` is told what is reported, too, while the block runs."""
        self._reporter.observers.append(observer)
        try:
            yield
        finally:
            self._reporter.observers.remove(observer)

    def desire(self, payload: bytes, *, repeated: bool = False) -> None:
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
        self._tell_set_aside()
        snapshot = self._store.snapshot()
        if snapshot.desired is not None and not snapshot.overridden:
            try:
                self._reporter.revision = revision_of(snapshot.desired)
                self._follow(snapshot.desired)
            except Exception as error:
                if isinstance(error, StoreBroken | StoreFull):
                    raise
                # It is stored, so it would keep every start from coming through.
                self._wish = None
                self._say_fault()
        if self._store.unwritable is not None:
            await self._serve_recorded()
            return
        try:
            await self._restart()
        except Exception as error:
            if isinstance(error, EdgeBundleError):
                raise
            self._say_fault()
            self._restore_at = asyncio.get_running_loop().time() + RESTORE_SECONDS
        active = self._store.bundle(self._store.snapshot().active)
        if self._driver.damaged and self._wish is None and active is not None:
            # Nobody asks for it just now, but it is what this device is meant to run.
            self._wish = Wish(active.name, active.version, tuple(self._sources.values()), self._settings)

    async def _restart(self) -> None:
        await self._driver.restart()
        now = asyncio.get_running_loop().time()
        self._restore_at = float("inf") if self._driver.restored else now + RESTORE_SECONDS

    async def _serve_recorded(self) -> None:
        """Nothing can be recorded: what is active answers, and nothing is begun."""
        if self._store.unwritable is not None and self._store.unwritable.reason is Reason.STORE_FULL:
            self._driver.make_room()
        await self._driver.serve_recorded()
        now = asyncio.get_running_loop().time()
        self._restore_at = float("inf") if self._driver.restored else now + RESTORE_SECONDS

    def recovered(self) -> None:
        """What happens can be recorded again: go on as after a start."""
        self._restore_at = float("-inf")
        self._changed.set()
        self._reporter.tell()

    async def run(self) -> None:
        """Follow wishes until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take_in(), name="desired documents")
            group.create_task(self._work(), name="installation")

    async def carry_out(self, wish: Wish) -> Outcome:
        """Do what this device's operator asks for, before anything else; how it ended.

        Once it is done, a ``desired`` document that came earlier is not followed any more.
        """
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._orders.append((wish, outcome))
        self._driver.supersede("operator")
        self._changed.set()
        return await outcome

    async def refresh_trust(self, sources: Sequence[Source] = ()) -> None:
        """Look now what the sources say, as soon as nothing is being installed; revoked bundles are dealt with as the
        policy wants. ``sources``: others than those that are configured.

        Raises:
            EdgeBundleError: they could not be asked, or what they say is refused.
        """
        looked: asyncio.Future[EdgeBundleError | None] = asyncio.get_running_loop().create_future()
        self._looks.append((tuple(sources), looked))
        self._changed.set()
        problem = await looked
        if problem is not None:
            raise problem

    async def _take_in(self) -> None:
        said = ""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            payload, self._pending = self._pending, None
            asked, self._asked_again = self._asked_again, False
            if payload is not None:
                try:
                    self._consider(payload, again=asked)
                except (StoreBroken, StoreFull) as error:
                    if error.message != said:
                        log.warning("a desired document could not be recorded: %s", error.message)
                    said = error.message
                    self._pending = self._pending or payload
                    self._asked_again = self._asked_again or asked
                    self._arrived.set()
                    self._reporter.error = reported_error(error)
                    self._reporter.tell()
                    await asyncio.sleep(RECORD_SECONDS)
                except Exception:
                    # The broker keeps the document and sends it again at every connection and every start.
                    self._say_fault()
            await asyncio.sleep(WISH_SECONDS)

    def _tell_set_aside(self) -> None:
        """Say what of the state could not be read, once."""
        try:
            found = self._store.tell_set_aside()
        except (StoreBroken, StoreFull):
            # Then at a start when it can be noted that it was said.
            return
        for each in found:
            text = f"{each.source} of state.db was set aside: {each.reason}"
            log.warning("%s", text)
            self._reporter.event("refused", {"bundle": None, "reason": Reason.STORED_DATA_INVALID, "message": text})

    def _say_fault(self) -> None:
        """Report the exception that is being handled, and go on."""
        log.exception("the installation met a fault of this agent")
        self._reporter.error = reported_error(FAULT)
        try:
            self._reporter.tell()
        except Exception:
            log.exception("it cannot be reported")

    def _consider(self, payload: bytes, *, again: bool) -> None:
        snapshot = self._store.snapshot()
        rejected, self._rejected = self._rejected, None
        if payload == (snapshot.desired or b""):
            idle = self._driver.state is State.IDLE
            unfinished = self._wish is not None or self._reporter.error is not None
            if (again or rejected is not None) and unfinished and payload and not snapshot.overridden and idle:
                self._try_now(payload)
            elif rejected is not None:
                # What was wrong with the document before is over.
                self._reporter.revision, self._reporter.error = revision_of(payload), None
            self._reporter.tell()
            return
        try:
            read_desired(payload, self._settings, self._sources)
        except BundleRefused as refused:
            self._reject(payload, refused)
            return
        self._store.desire(payload or None)
        self._follow(payload)
        self._withdrawn = not payload
        self._driver.supersede("desired")
        self._changed.set()

    def _try_now(self, payload: bytes) -> None:
        """Somebody asks once more for what is wished for already: neither wait for the next attempt, nor take the last
        refusal for final.
        """
        if self._wish is None:
            self._follow(payload)
        self._driver.backoff.reset()
        self._not_before = float("-inf")
        self._changed.set()

    def _follow(self, payload: bytes) -> None:
        """Make an accepted document the wish in force."""
        try:
            self._wish = read_desired(payload, self._settings, self._sources)
        except BundleRefused as refused:
            # It was accepted under an older configuration.
            self._wish = None
            self._reject(payload, refused)
            return
        self._driver.backoff.reset()
        self._not_before = float("-inf")
        self._unlisted_in = None
        if self._wish is None:
            self._reporter.begin(None)

    def _reject(self, payload: bytes, refused: BundleRefused) -> None:
        """Say so; a wish that is being pursued goes on, since whoever sent this may not even be its author."""
        detail = {"reason": refused.reason, "message": refused.message, "revision": revision_of(payload)}
        self._reporter.meter.failed(refused.reason)
        self._reporter.event("refused", detail)
        unsaid = self._ration.unsaid()
        self._ration.spend()
        if unsaid is not None:
            self._audit.note(
                "refused",
                revision=detail["revision"],
                reason=refused.reason,
                message=refused.message + unsaid_text(unsaid),
            )
        if self._driver.state is State.IDLE:
            self._reporter.begin(revision_of(payload))
        self._reporter.error = reported_error(refused)
        self._rejected = (revision_of(payload), self._reporter.error)
        self._reporter.tell()

    def _tell_rejected(self) -> None:
        """The wish in force is fulfilled, but the broker keeps a later document that was refused."""
        if self._rejected is not None:
            self._reporter.revision, self._reporter.error = self._rejected
            self._reporter.tell()

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            try:
                if self._store.unwritable is not None:
                    await self._hold_out(self._store.unwritable)
                    continue
                if clock() >= self._restore_at:
                    await self._restart()
                await self._next_step()
                if not self._driver.restored:
                    # A rollback found that the old bundle does not load just now.
                    self._restore_at = min(self._restore_at, clock() + RESTORE_SECONDS)
                if not self._orders and (self._looks or clock() >= self._watch.due):
                    await self._look()
                    self._changed.set()
            except (StoreBroken, StoreFull) as error:
                log.warning("the installation state cannot be written: %s", error.message)
                self._restore_at = self._not_before = clock() + RESTORE_SECONDS
                self._give_up_looks(error)
            except Exception:
                self._say_fault()
                # Where it stands is recorded; it goes on from there, as after a restart, but not at once for ever.
                self._restore_at = self._not_before = clock() + max(
                    RESTORE_SECONDS, self._driver.backoff.after_failure()
                )
            if self._orders:
                continue
            due = min(self._restore_at, self._watch.due)
            if self._wish is not None:
                due = min(due, self._not_before)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if due == float("inf") else due):
                    await self._changed.wait()

    async def _hold_out(self, unwritable: StoreFull | StoreBroken) -> None:
        """Until what happens can be recorded nothing is done, except that a model that does not load is tried again."""
        for _, future in self._orders:
            if not future.done():
                future.set_result(Outcome("later", unwritable))
        self._orders.clear()
        self._give_up_looks(unwritable)
        if asyncio.get_running_loop().time() >= self._restore_at:
            await self._serve_recorded()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(None if self._restore_at == float("inf") else self._restore_at):
                await self._changed.wait()

    def _give_up_looks(self, error: EdgeBundleError) -> None:
        for _, asked in self._looks:
            if not asked.done():
                asked.set_result(error)
        self._looks.clear()

    async def _look(self) -> None:
        """Refresh trust, for whoever asked for it first or because it is time."""
        sources, asked = self._looks[0] if self._looks else ((), None)
        looked = Looked(True, FAULT)
        try:
            looked = await self._watch.refresh(self._changed, sources)
        except EdgeBundleError as error:
            looked = Looked(True, error)
            raise
        finally:
            if asked is not None and looked.done:
                self._looks.pop(0)
                if not asked.done():
                    asked.set_result(looked.problem)
        if self._unlisted_in is not None and self._unlisted_in != self._store.role_versions():
            self._look_for_it_again()

    def _look_for_it_again(self) -> None:
        """What is desired was not listed, and newer metadata has come: a cache may have been behind the publisher."""
        self._unlisted_in = None
        desired = self._store.snapshot().desired
        if self._wish is None and desired is not None and not self._store.snapshot().overridden:
            self._follow(desired)
            self._changed.set()

    async def _next_step(self) -> None:
        clock = asyncio.get_running_loop().time
        if self._orders:
            await self._obey(*self._orders.pop(0))
            return
        wish = self._wish
        if self._withdrawn:
            self._withdrawn = False
            self._driver.reclaim()
        if wish is None or clock() < self._not_before:
            damaged = self._watch.take_damaged() if wish is None else None
            if damaged is not None:
                self._mend(damaged)
            elif await self._watch.replace_revoked():
                self._changed.set()
            self._reporter.tell()
            return
        outcome = await self._pursue(wish)
        self._watch.tell()
        if self._wish is not wish:
            return
        if outcome.kind == "later":
            self._not_before = clock() + outcome.retry_in
        elif outcome.kind != "superseded":
            self._wish = None
            self._driver.backoff.reset()
            if outcome.kind == "active":
                self._restore_at = float("inf")
                self._tell_rejected()
            elif outcome.error is not None and outcome.error.reason is Reason.NOT_LISTED:
                self._unlisted_in = self._store.role_versions()
                self._watch.hurry()
            # With the wish out of the way, what was found revoked may have to go.
            self._changed.set()

    def _mend(self, damaged: InstalledBundle) -> None:
        """Obtain what is active once more, while it serves on from what it has loaded."""
        self._driver.damaged = True
        sources, revision = tuple(self._sources.values()), self._reporter.revision
        self._wish = Wish(damaged.name, damaged.version, sources, self._settings, revision=revision, urgent=True)
        self._changed.set()

    async def _obey(self, order: Wish, future: asyncio.Future[Outcome]) -> None:
        older = self._wish
        outcome = Outcome("later", FAULT)
        try:
            outcome = await self._pursue(order)
        except (StoreBroken, StoreFull) as error:
            outcome = Outcome("later", error)
            raise
        finally:
            if not future.done():
                future.set_result(outcome)
        if outcome.kind == "active":
            self._restore_at = float("inf")
        if outcome.kind == "active" and self._wish is older:
            self._store.override_desired()
            self._wish = None
            self._withdrawn = True
            self._changed.set()

    async def _pursue(self, wish: Wish) -> Outcome:
        active = self._store.bundle(self._store.snapshot().active)
        in_force = [active, *self._store.adapters_of(active.digest)] if active is not None else []
        if any(each.reference == wish.reference for each in in_force) and not self._driver.damaged:
            self._reporter.begin(wish.revision)
            self._reporter.tell()
            return Outcome("active")
        outcome = await self._driver.pursue(wish)
        if outcome.kind == "active":
            self._watch.mended(self._store.snapshot().active)
        return outcome
