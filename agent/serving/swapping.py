"""Which worker gets new requests, and how that changes without losing any.

``overlap`` loads the new model beside the old one, which finishes what it runs. ``drain`` lets the old one finish,
ends it and then loads the new one; requests wait meanwhile. Either way the old one serves on if the new one fails.
Where memory has no room for a second model at all, the old one steps aside already while the new one is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from agent.install.ports import SealedBundle, SwapMode
from agent.serving.jobs import Job
from agent.serving.seat import Seat
from contract.errors import EngineFailed


class Swapping:
    """Holds the current seat and those that are being left; ``on_hold`` hears when requests begin to wait."""

    def __init__(
        self,
        make_seat: Callable[[SealedBundle], Seat],
        drain_seconds: float,
        now: Callable[[], float],
        on_hold: Callable[[], None],
    ) -> None:
        self._make_seat = make_seat
        self._drain_seconds = drain_seconds
        self._now = now
        self._on_hold = on_hold
        self._lock = asyncio.Lock()
        self._leaving: dict[Seat, asyncio.Task[None]] = {}
        self._held_since: float | None = None
        self._aside: Seat | None = None
        self.seat: Seat | None = None

    @property
    def holding(self) -> bool:
        """New requests wait: no worker may take any now."""
        return self._held_since is not None

    @property
    def seats(self) -> list[Seat]:
        """The current one and those that finish their last answers."""
        return [*([] if self.seat is None else [self.seat]), *self._leaving]

    async def swap(self, bundle: SealedBundle, mode: SwapMode, run_again: Callable[[Job], None]) -> float | None:
        """Make ``bundle`` the current one; since when requests had to wait for it (None: they had not).

        Raises:
            EngineFailed: the new model does not load; the old one is the current one again.
        """
        async with self._lock:
            old = self.seat
            if mode == "overlap" and old is not None and old.worker is not None:
                seat = self._make_seat(bundle)
                await seat.open(leaving_bytes=old.footprint.anonymous_bytes)
                self.seat = seat
                self._leaving[old] = asyncio.create_task(self._leave(old, run_again))
                return None
            since = self._hold()
            try:
                if old is not None:
                    await self._empty(old, run_again)
                    await old.close()
                await self._open_or_return(self._make_seat(bundle), old)
                return since
            finally:
                self._held_since = self._aside = None

    async def step_aside(self, run_again: Callable[[Job], None]) -> None:
        """End the current worker and let requests wait, until ``swap`` or ``come_back``."""
        async with self._lock:
            if self.seat is None:
                return
            self._hold()
            await self._empty(self.seat, run_again)
            # Half closed it could neither serve nor be opened again; the end of a worker is a matter of seconds.
            closing, self._aside = asyncio.ensure_future(self.seat.close()), self.seat
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await closing
                raise

    async def come_back(self) -> float | None:
        """Serve again what stepped aside; since when requests had to wait (None: nothing had stepped aside)."""
        async with self._lock:
            since, old = self._held_since, self.seat
            if since is None or old is None:
                return None
            try:
                if old is self._aside:
                    self.seat = self._make_seat(old.bundle)
                    try:
                        await self.seat.open()
                    except EngineFailed:
                        # It ran a moment ago: it is loaded again in the background, until that works.
                        self.seat.open_later()
                return since
            finally:
                self._held_since = self._aside = None

    async def withdraw(self, run_again: Callable[[Job], None]) -> None:
        """Let the current one finish and put nothing in its place."""
        async with self._lock:
            old, self.seat, self._held_since, self._aside = self.seat, None, None, None
            if old is not None:
                self._leaving[old] = asyncio.create_task(self._leave(old, run_again))
                await asyncio.wait([self._leaving[old]])

    def _hold(self) -> float:
        """Let requests wait from now on, if they do not yet; since when they do."""
        if self._held_since is None:
            self._held_since = self._now()
            self._on_hold()
        return self._held_since

    async def _open_or_return(self, seat: Seat, old: Seat | None) -> None:
        try:
            await seat.open()
        except EngineFailed:
            if old is not None:
                # As in ``come_back``; whoever asked for the new one is told at once.
                self.seat = self._make_seat(old.bundle)
                self.seat.open_later()
            raise
        self.seat = seat

    async def _leave(self, seat: Seat, run_again: Callable[[Job], None]) -> None:
        try:
            await self._empty(seat, run_again)
            await seat.close()
        finally:
            self._leaving.pop(seat, None)

    async def _empty(self, seat: Seat, run_again: Callable[[Job], None]) -> None:
        """Wait for the running answers; what takes too long is run again elsewhere."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                await seat.idle.wait()
        for number in list(seat.jobs):
            if seat.worker is not None:
                seat.worker.cancel(number)
            job = seat.release(number)
            if job is not None:
                run_again(job)

    async def finish_running(self, seconds: float) -> None:
        """Wait up to ``seconds`` until nothing runs anywhere."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for seat in self.seats:
                    await seat.idle.wait()

    async def close(self) -> None:
        """End all workers."""
        for task in list(self._leaving.values()):
            task.cancel()
        for seat in self.seats:
            await seat.close()
        self.seat = None
