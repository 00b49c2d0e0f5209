"""Offline installation, while no agent runs: everything from download to canary and commit, without serving."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from agent.install.compose import make_reconciler
from agent.install.desired import DesiredBundle
from agent.install.ports import Footprint, SealedBundle, ServingCounters, SwapMode, SwapReport
from agent.install.update.attempt import Outcome
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory, make_private
from agent.state.lock import FileLock
from agent.state.schema import SCHEMA
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess
from contract.mqtt.reports import Reported
from contract.system.durable import Disk


class NullServer:
    """Stands in for serving on the command line: a bundle counts as served without being loaded.

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
        """Nothing is loaded."""

    async def resume(self) -> float | None:
        return None

    async def stop(self) -> None:
        self._bundle = None

    def mark_unavailable(self) -> None:
        """There are no requests."""

    def counters(self) -> ServingCounters:
        return ServingCounters(finished=0, failed=0, crashes=0, speed=None)


async def start_at_full_priority(*arguments: Any, **named: Any) -> WorkerProcess:
    """As :meth:`WorkerProcess.start`: a canary gives way to a model that answers, and here none does.

    On a box whose cores are busy with something else, the weakest process would get nothing for minutes.
    """
    return await WorkerProcess.start(*arguments, **{**named, "nice": 0})


async def install_offline(
    directory: StateDirectory,
    target: DesiredBundle,
    worker_settings: WorkerSettings,
    on_reported: Callable[[Reported], None],
) -> Outcome:
    """Install ``target`` with exclusive use of the state directory; without requests there is no probation.

    Raises:
        StoreBroken: STATE_LOCKED when an agent or another command uses the directory; StoreFull.
    """
    disk = Disk()
    make_private(directory, disk)
    settings = msgspec.structs.replace(
        target.settings, probation_seconds=0.0, trust_refresh_seconds=0.0, on_revoked="keep"
    )
    with FileLock(directory.lock, "another agent or command"):
        database = Database(directory.database, SCHEMA, disk.effects)
        try:
            reconciler = make_reconciler(
                directory=directory,
                state=InstallationState(database),
                settings=settings,
                sources={},
                serving=NullServer(),
                workers=start_at_full_priority,
                worker_settings=worker_settings,
                on_reported=on_reported,
                on_event=lambda kind, detail: None,
                disk=disk,
            )
            await reconciler.start_active()
            running = asyncio.create_task(reconciler.run())
            try:
                return await reconciler.execute(msgspec.structs.replace(target, settings=settings))
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
        finally:
            database.close()
