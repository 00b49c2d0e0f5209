"""One worker process with a bundle loaded: starts it, watches it, starts another when it dies.

A worker that had nothing to do for long enough is ended, since only the end of a process gives its memory back for
sure; the replica is then ``unloaded`` until somebody calls :meth:`Replica.load`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from msgspec import UNSET

from agent.engine.interface import StepEvent
from agent.install.ports import Footprint, SealedBundle
from agent.install.update.worker_start import load_bundle
from agent.serving.active_request import ActiveRequest
from agent.serving.events import (
    ReplicaClosed,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnloaded,
    ReplicaUnloading,
)
from agent.serving.slots import Slots
from agent.systemd.journal import fields
from agent.worker.ports import Worker
from contract.errors import EngineFailed
from contract.mqtt.device import Deviation, EngineInfo
from contract.system.backoff import Backoff

log = logging.getLogger("edge_agent.serving")

FIRST_RESTART_SECONDS = 0.2
LONGEST_RESTART_SECONDS = 30.0
"""A worker that dies at once is not restarted in a tight loop: loading a model takes all cores."""


class LoadWorker(Protocol):
    """Start a worker with a bundle loaded; settings are bound already. Raises EngineFailed."""

    async def __call__(
        self,
        bundle_dir: Path,
        *,
        derived_dir: Path | None,
        adapters: Mapping[str, Path],
        reclaimable_bytes: int,
        on_event: Callable[[StepEvent], None],
    ) -> Worker: ...


class ReplicaEvents(Protocol):
    """Receives what happens to a replica, in the event loop; no method may block."""

    def attach(self, replica: Replica) -> None:
        """A worker is loaded: commands for the replica's slots go to it from now on."""
        ...

    def detach(self, replica: Replica) -> None:
        """It is closed."""
        ...

    def handle(
        self, event: ReplicaReady | ReplicaLost | ReplicaUnloading | ReplicaUnloaded | ReplicaClosed
    ) -> None: ...

    def on_worker_event(self, replica: Replica, event: StepEvent) -> None: ...


class Replica:
    """``idle_unload``: after so many seconds without a request the worker is ended (0: never)."""

    def __init__(self, bundle: SealedBundle, load: LoadWorker, events: ReplicaEvents, idle_unload: float = 0.0) -> None:
        self.bundle = bundle
        self.slots = Slots(bundle.manifest.reference)
        self._load = load
        self._events = events
        self._idle_unload = idle_unload
        self._used = 0.0
        self._load_wanted = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self.worker: Worker | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def running(self) -> Mapping[int, ActiveRequest]:
        """The requests that it has, by number."""
        return self.slots.running

    @property
    def unloaded(self) -> bool:
        """For want of requests; :meth:`load` loads it again."""
        return self.slots.unloaded

    def load(self) -> None:
        """Somebody waits: load the bundle again."""
        self._load_wanted.set()

    @property
    def footprint(self) -> Footprint:
        """Memory of its worker, as the worker last reported it."""
        if self.worker is None or self.worker.usage is None:
            return Footprint()
        usage, _ = self.worker.usage
        return Footprint(usage.anonymous_bytes, usage.rss_bytes - usage.anonymous_bytes)

    @property
    def engine(self) -> EngineInfo | None:
        """What the loaded worker reported of its engine."""
        if self.worker is None:
            return None
        facts = self.worker.facts
        independence = facts.independence
        return EngineInfo(
            engine=facts.engine,
            why=facts.why,
            slots=facts.slots,
            context_length=facts.context_length,
            vocab_size=facts.vocab_size,
            capabilities=list(facts.capabilities),
            load_seconds=facts.load_seconds,
            isolation=self.worker.isolation,
            reproducible=independence.reproducible,
            reproducible_why=independence.why,
            deviation=UNSET if independence.reproducible else Deviation(independence.logits, independence.nats),
            kernels=facts.kernels or UNSET,
            speculation=facts.speculation or UNSET,
            adapters=[each.manifest.reference for each in self.bundle.adapters] or UNSET,
        )

    async def open(self, *, reclaimable_bytes: int = 0) -> None:
        """Load the bundle; ``reclaimable_bytes`` are free once the worker ends that this one replaces.

        Raises:
            EngineFailed: it does not load; nothing is left running.
        """
        await self._start_worker(reclaimable_bytes)
        self._watcher = asyncio.create_task(self._watch(), name=f"replica {self.bundle.manifest.reference}")

    def open_in_background(self) -> None:
        """Load the bundle in the background, trying until it works."""
        self._watcher = asyncio.create_task(self._watch(), name=f"replica {self.bundle.manifest.reference}")

    def note_busy(self) -> None:
        """Something runs here."""
        self.idle.clear()

    def note_idle(self) -> None:
        """Nothing runs here any more."""
        self.idle.set()
        self._used = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End the worker."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        worker, self.worker = self.worker, None
        self._events.handle(ReplicaClosed(self.slots))
        if worker is not None:
            await worker.close()
        self._events.detach(self)

    async def _start_worker(self, reclaimable_bytes: int = 0) -> None:
        # Late events of an earlier worker carry numbers that no request has any more.
        on_event = partial(self._events.on_worker_event, self)
        start = partial(self._load, reclaimable_bytes=reclaimable_bytes, on_event=on_event)
        self.worker = await load_bundle(self.bundle, start)
        facts = self.worker.facts
        named = fields(worker=self.worker.pid, engine=facts.engine, reproducible=facts.independence.reproducible)
        summary = self.engine.summary if self.engine is not None else ""
        log.info("%s is loaded, engine %s", self.bundle.manifest.reference, summary, extra=named)
        self._events.attach(self)
        self._events.handle(ReplicaReady(self.slots, facts.slots))

    async def _watch(self) -> None:
        backoff = Backoff(FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS, random.uniform)
        lost: float | None = None
        while True:
            if self.worker is not None:
                if lost is not None:
                    seconds = f"{asyncio.get_running_loop().time() - lost:.1f}"
                    back = fields(worker=self.worker.pid, seconds=seconds)
                    log.info("the worker of %s is back", self.bundle.manifest.reference, extra=back)
                    lost = None
                started = asyncio.get_running_loop().time()
                why = await self._ended(self.worker)
                if why is None:
                    await self._unload(self.worker)
                else:
                    ended = fields(worker=self.worker.pid)
                    log.error("the worker of %s ended: %s", self.bundle.manifest.reference, why, extra=ended)
                    self.worker = None
                    lost = asyncio.get_running_loop().time()
                    if asyncio.get_running_loop().time() - started > LONGEST_RESTART_SECONDS:
                        backoff.reset()
                    self._events.handle(ReplicaLost(self.slots, why))
                    await asyncio.sleep(backoff.after_failure())
            else:
                await asyncio.sleep(backoff.after_failure())
            try:
                await self._start_worker()
            except EngineFailed as error:
                log.error("the worker of %s cannot be replaced: %s", self.bundle.manifest.reference, error.message)  # noqa: TRY400
                self._events.handle(ReplicaLost(self.slots, error.message, load_failed=True))

    async def _ended(self, worker: Worker) -> str | None:
        """Wait until the worker has ended, and return why; None when it has been idle for long enough instead."""
        now = asyncio.get_running_loop().time
        self._used = now()
        end = asyncio.ensure_future(worker.wait_closed())
        try:
            while True:
                left = None
                if self._idle_unload:
                    left = self._idle_unload if self.slots.running else self._used + self._idle_unload - now()
                    if left <= 0:
                        return None
                await asyncio.wait([end], timeout=left)
                if end.done():
                    return end.result()
        finally:
            end.cancel()

    async def _unload(self, worker: Worker) -> None:
        """End the worker and wait until somebody wants one."""
        log.info(
            "%s was idle and is unloaded until the next request",
            self.bundle.manifest.reference,
            extra=fields(worker=worker.pid),
        )
        self._load_wanted.clear()
        self._events.handle(ReplicaUnloading(self.slots))
        await worker.close()
        self.worker = None
        self._events.handle(ReplicaUnloaded(self.slots))
        await self._load_wanted.wait()
