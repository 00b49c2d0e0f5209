"""Which worker gets new requests, and how that changes without losing any.

``overlap`` loads the new model beside the old one, which finishes what it runs. ``drain`` lets the old one finish,
ends it and then loads the new one; requests wait meanwhile. Either way the old one serves on if the new one fails.
Where memory has no room for a second model at all, the old one is suspended already while the new one is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from agent.install.ports import SealedBundle, SwapMode
from agent.serving.active_request import ActiveRequest
from agent.serving.replica import Replica
from contract.errors import EngineFailed


class Switchover:
    """Holds the current replica and those that are draining; ``on_pause`` hears when requests begin to wait."""

    def __init__(
        self,
        make_replica: Callable[[SealedBundle], Replica],
        drain_seconds: float,
        now: Callable[[], float],
        on_pause: Callable[[], None],
    ) -> None:
        self._make_replica = make_replica
        self._drain_seconds = drain_seconds
        self._now = now
        self._on_pause = on_pause
        self._lock = asyncio.Lock()
        self._draining: dict[Replica, asyncio.Task[None]] = {}
        self._paused_since: float | None = None
        self._parked: Replica | None = None
        self.replica: Replica | None = None

    @property
    def paused(self) -> bool:
        """New requests wait: no worker may take any now."""
        return self._paused_since is not None

    @property
    def replicas(self) -> list[Replica]:
        """The current one and those that finish their last answers."""
        return [*([] if self.replica is None else [self.replica]), *self._draining]

    async def swap(
        self, bundle: SealedBundle, mode: SwapMode, requeue: Callable[[ActiveRequest], None]
    ) -> float | None:
        """Make ``bundle`` the current one; since when requests had to wait for it (None: they had not).

        Raises:
            EngineFailed: the new model does not load; the old one is the current one again.
        """
        async with self._lock:
            old = self.replica
            if mode == "overlap" and old is not None and old.worker is not None:
                replica = self._make_replica(bundle)
                await replica.open(leaving_bytes=old.footprint.anonymous_bytes)
                self.replica = replica
                self._draining[old] = asyncio.create_task(self._drain_and_close(old, requeue))
                return None
            since = self._pause()
            try:
                if old is not None:
                    await self._drain(old, requeue)
                    await old.close()
                await self._open_or_return(self._make_replica(bundle), old)
                return since
            finally:
                self._paused_since = self._parked = None

    async def suspend(self, requeue: Callable[[ActiveRequest], None]) -> None:
        """End the current worker and let requests wait, until ``swap`` or ``resume``."""
        async with self._lock:
            if self.replica is None:
                return
            self._pause()
            await self._drain(self.replica, requeue)
            # Half closed it could neither serve nor be opened again; the end of a worker is a matter of seconds.
            closing, self._parked = asyncio.ensure_future(self.replica.close()), self.replica
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await closing
                raise

    async def resume(self) -> float | None:
        """Serve again what was suspended; since when requests had to wait (None: nothing had been suspended)."""
        async with self._lock:
            since, old = self._paused_since, self.replica
            if since is None or old is None:
                return None
            try:
                if old is self._parked:
                    self.replica = self._make_replica(old.bundle)
                    try:
                        await self.replica.open()
                    except EngineFailed:
                        # It ran a moment ago: it is loaded again in the background, until that works.
                        self.replica.open_in_background()
                return since
            finally:
                self._paused_since = self._parked = None

    async def stop(self, requeue: Callable[[ActiveRequest], None]) -> None:
        """Let the current one finish and put nothing in its place."""
        async with self._lock:
            old, self.replica, self._paused_since, self._parked = self.replica, None, None, None
            if old is not None:
                self._draining[old] = asyncio.create_task(self._drain_and_close(old, requeue))
                await asyncio.wait([self._draining[old]])

    def _pause(self) -> float:
        """Let requests wait from now on, if they do not yet; since when they do."""
        if self._paused_since is None:
            self._paused_since = self._now()
            self._on_pause()
        return self._paused_since

    async def _open_or_return(self, replica: Replica, old: Replica | None) -> None:
        try:
            await replica.open()
        except EngineFailed:
            if old is not None:
                # As in ``resume``; whoever asked for the new one is told at once.
                self.replica = self._make_replica(old.bundle)
                self.replica.open_in_background()
            raise
        self.replica = replica

    async def _drain_and_close(self, replica: Replica, requeue: Callable[[ActiveRequest], None]) -> None:
        try:
            await self._drain(replica, requeue)
            await replica.close()
        finally:
            self._draining.pop(replica, None)

    async def _drain(self, replica: Replica, requeue: Callable[[ActiveRequest], None]) -> None:
        """Wait for the running answers; what takes too long is run again elsewhere."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                await replica.idle.wait()
        for number in list(replica.running):
            if replica.worker is not None:
                replica.worker.cancel(number)
            request = replica.release(number)
            if request is not None:
                requeue(request)

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
