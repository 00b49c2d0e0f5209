"""Which worker gets new requests, and how that changes without losing any.

``overlap`` loads the new model beside the old one, which finishes what it runs. ``drain`` lets the old one finish,
ends it and then loads the new one; requests wait meanwhile. Either way the old one serves on if the new one fails. A
model that does not load beside the old one is loaded in its place, unless it took too long: it passed its canary, so
what is missing is memory.
Where memory has no room for a second model at all, the old one is suspended already while the new one is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from agent.install.ports import SealedBundle, SwapMode, SwapReport
from agent.serving.events import DrainEnded, DrainTimedOut, Paused, Resumed, Stopped, Switched
from agent.serving.loop import Loop
from agent.serving.replica import LoadWorker, Replica
from agent.serving.scheduler import Scheduler
from agent.serving.settings import ServingSettings
from contract.errors import EngineFailed, LoadTimedOut

log = logging.getLogger("edge_agent.serving")


class Switchover:
    """Holds the current replica and those that are draining; its decisions reach the scheduler through ``loop``."""

    def __init__(self, settings: ServingSettings, loop: Loop, scheduler: Scheduler, load: LoadWorker) -> None:
        self._settings = settings
        self._loop = loop
        self._scheduler = scheduler
        self._load = load
        self._now = asyncio.get_running_loop().time
        self._lock = asyncio.Lock()
        self._draining: dict[Replica, asyncio.Task[None]] = {}
        self._parked: Replica | None = None
        self.replica: Replica | None = None

    @property
    def replicas(self) -> list[Replica]:
        """The current one and those that finish their last answers."""
        return [*([] if self.replica is None else [self.replica]), *self._draining]

    async def swap(self, bundle: SealedBundle, mode: SwapMode) -> SwapReport:
        """Make ``bundle`` the current one, losing no accepted request.

        Raises:
            EngineFailed: the new model does not load; the old one is the current one again.
        """
        async with self._lock:
            old = self.replica
            if mode == "overlap" and old is not None and old.worker is not None and await self._overlap(bundle, old):
                return SwapReport(mode, 0.0)
            self._loop.handle(Paused())
            try:
                if old is not None:
                    await self._drain(old)
                    await old.close()
                replica = self._make_replica(bundle)
                await self._open_or_return(replica, old)
                pause = self._pause_ms()
                self._loop.handle(Switched(replica.slots))
                return SwapReport("drain", pause)
            finally:
                self._end_pause()

    async def _overlap(self, bundle: SealedBundle, old: Replica) -> bool:
        """Whether ``bundle`` was loaded beside ``old`` and is the current one now."""
        replica = self._make_replica(bundle)
        try:
            await replica.open(reclaimable_bytes=old.footprint.anonymous_bytes)
        except LoadTimedOut:
            raise  # requests would wait for as long again
        except EngineFailed as error:
            log.warning(
                "%s does not load beside %s, which is ended first: %s",
                bundle.manifest.reference,
                old.bundle.manifest.reference,
                error.message,
            )
            return False
        self._drain_in_background(old)
        self.replica = replica
        self._loop.handle(Switched(replica.slots, old.slots))
        return True

    async def suspend(self) -> None:
        """End the current worker and let requests wait, until ``swap`` or ``resume``."""
        async with self._lock:
            if self.replica is None:
                return
            self._loop.handle(Paused())
            await self._drain(self.replica)
            # Half closed it could neither serve nor be opened again; the end of a worker is a matter of seconds.
            closing, self._parked = asyncio.ensure_future(self.replica.close()), self.replica
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await closing
                raise

    async def resume(self) -> float | None:
        """Serve again what was suspended; the longest time in ms that requests waited (None: nothing had been
        suspended).
        """
        async with self._lock:
            old = self.replica
            if self._scheduler.paused_since is None or old is None:
                return None
            try:
                if old is self._parked:
                    self.replica = self._make_replica(old.bundle)
                    try:
                        await self.replica.open()
                    except EngineFailed:
                        # It ran a moment ago: it is loaded again in the background, until that works.
                        self.replica.open_in_background()
                return self._pause_ms()
            finally:
                self._end_pause()

    async def stop(self) -> None:
        """Let the current one finish and replace it with nothing."""
        async with self._lock:
            old, self.replica, self._parked = self.replica, None, None
            if old is not None:
                self._drain_in_background(old)
            self._loop.handle(Stopped(None if old is None else old.slots))
            if old is not None:
                await asyncio.wait([self._draining[old]])

    def _make_replica(self, bundle: SealedBundle) -> Replica:
        return Replica(bundle, self._load, self._loop, self._settings.idle_unload)

    def _pause_ms(self) -> float:
        now = self._now()
        return round(self._scheduler.longest_wait(self._scheduler.paused_since, now) * 1000, 3)

    def _end_pause(self) -> None:
        """Unless the switch was made, the model is the one from before."""
        self._parked = None
        if self._scheduler.paused_since is not None:
            self._loop.handle(Resumed(None if self.replica is None else self.replica.slots))

    async def _open_or_return(self, replica: Replica, old: Replica | None) -> None:
        try:
            await replica.open()
        except EngineFailed:
            if old is not None:
                # As in ``resume``; whoever asked for the new one gets the error at once.
                self.replica = self._make_replica(old.bundle)
                self.replica.open_in_background()
            raise
        self.replica = replica

    def _drain_in_background(self, replica: Replica) -> None:
        self._draining[replica] = asyncio.create_task(self._drain_and_close(replica))

    async def _drain_and_close(self, replica: Replica) -> None:
        try:
            await self._drain(replica)
            await replica.close()
        finally:
            self._draining.pop(replica, None)
            self._loop.handle(DrainEnded(replica.slots))

    async def _drain(self, replica: Replica) -> None:
        """Wait for the running answers; what takes too long is run again elsewhere."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_seconds):
                await replica.idle.wait()
        if replica.running:
            self._loop.handle(DrainTimedOut(replica.slots))

    async def finish_running(self, seconds: float) -> None:
        """Wait up to ``seconds`` until nothing runs anywhere."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for replica in self.replicas:
                    await replica.idle.wait()

    async def close(self) -> None:
        """End all workers."""
        for task in list(self._draining.values()):
            task.cancel()
        for replica in self.replicas:
            await replica.close()
        self.replica = None
