"""Installing while no agent runs: the whole way with canary and commit, and nobody to serve meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from agent.install.coordinator import Coordinator
from agent.install.driving import Outcome
from agent.install.ports import Footprint, SealedBundle, ServingCounters, SwapMode, SwapReport
from agent.install.wishes import Wish
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory, make_private
from agent.state.lock import FileLock
from agent.state.migrations import MIGRATIONS
from agent.worker.settings import WorkerSettings
from agent.worker.supervision import WorkerProcess
from contract.durable import Disk
from contract.mqtt.messages import Reported


class NobodyServed:
    """Takes the place of serving on the command line: a bundle counts as served without being loaded.

    The canary has loaded it before; the agent loads it at its next start.
    """

    def __init__(self) -> None:
        self._bundle: SealedBundle | None = None

    @property
    def bundle(self) -> SealedBundle | None:
        return self._bundle

    @property
    def footprint(self) -> Footprint:
        return Footprint()

    async def swap(self, bundle: SealedBundle, mode: SwapMode) -> SwapReport:
        self._bundle = bundle
        return SwapReport(mode=mode, queue_pause_ms=0.0)

    async def suspend(self) -> None:
        """Nobody is loaded."""

    async def resume(self) -> float | None:
        return None

    async def stop(self) -> None:
        self._bundle = None

    def mark_unavailable(self) -> None:
        """Nobody asks."""

    def counters(self) -> ServingCounters:
        return ServingCounters(finished=0, failed=0, crashes=0, speed=None)


async def start_at_full_priority(*arguments: Any, **named: Any) -> WorkerProcess:
    """As :meth:`WorkerProcess.start`: a canary gives way to a model that answers, and here none does.

    On a box whose cores are busy with something else, the weakest process would get nothing for minutes.
    """
    return await WorkerProcess.start(*arguments, **{**named, "nice": 0})


async def carry_out_alone(
    directory: StateDirectory,
    wish: Wish,
    worker_settings: WorkerSettings,
    on_reported: Callable[[Reported], None],
) -> Outcome:
    """Fulfil ``wish`` with the state directory for ourselves; nobody asks, so there is no probation to wait for.

    Raises:
        StoreBroken: STATE_LOCKED when an agent or another command uses the directory; StoreFull.
    """
    disk = Disk()
    make_private(directory, disk)
    settings = msgspec.structs.replace(
        wish.settings, probation_seconds=0.0, trust_refresh_seconds=0.0, on_revoked="keep"
    )
    with FileLock(directory.lock, "another agent or command"):
        database = Database(directory.database, MIGRATIONS, disk.effects)
        try:
            coordinator = Coordinator(
                directory=directory,
                state=InstallationState(database),
                settings=settings,
                sources={},
                serving=NobodyServed(),
                workers=start_at_full_priority,
                worker_settings=worker_settings,
                on_reported=on_reported,
                on_event=lambda kind, detail: None,
                disk=disk,
            )
            await coordinator.start_active()
            running = asyncio.create_task(coordinator.run())
            try:
                return await coordinator.carry_out(msgspec.structs.replace(wish, settings=settings))
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
        finally:
            database.close()
