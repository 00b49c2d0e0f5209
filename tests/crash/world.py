"""One agent's life in this process, deterministic to the effect: no threads, no timers, no processes of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.host import Host
from agent.install import obtaining
from agent.install.coordinator import Coordinator
from agent.install.installer import run_job
from agent.install.job import Job, Line, Progressed
from agent.install.settings import InstallSettings
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.migrations import MIGRATIONS
from agent.worker.settings import WorkerSettings
from contract.durable import Disk, Effects
from contract.mqtt.messages import Reported
from tests.agent.install.stage import StandInServing, StandInWorkers

T = TypeVar("T")

KILLED = 77
"""Exit status of a process whose power was cut."""

SETTINGS = InstallSettings(probation_seconds=0, swap="drain", swaps_per_hour=0, max_attempts=100)


class NumberedEffects(Effects):
    """Counts; ``cut(number)`` is called before the effect with that number, and may not return."""

    def __init__(self, cut_before: int = 0, cut: Callable[[], None] = lambda: os._exit(KILLED)) -> None:
        self.done: list[str] = []
        self._cut_before = cut_before
        self._cut = cut

    def perform(self, kind: str, target: str, action: Callable[[], T]) -> T:
        if len(self.done) + 1 == self._cut_before:
            self._cut()
        self.done.append(f"{kind} {target}")
        return action()


class Life:
    """From the start of an agent to its end; ``effects`` says where that is."""

    def __init__(self, directory: StateDirectory, source: str, disk: Disk, host: Host) -> None:
        self.directory = directory
        self.source = source
        self.disk = disk
        self.serving = StandInServing()
        self.workers = StandInWorkers()
        self.reported: list[Reported] = []
        self.fetched = 0
        # Probing the CPU starts a process for every installation and changes nothing on disk.
        obtaining.measure_host = lambda place: host

    async def _install(self, job: Job, on_line: Callable[[Line], None]) -> None:
        def hear(line: Line) -> None:
            if isinstance(line, Progressed):
                self.fetched = line.fetched
            on_line(line)

        run_job(job, self.disk, hear)

    def live(self, deed: Deed | None = None) -> None:
        """Start the agent, do ``deed`` beside it, end it."""
        database = Database(self.directory.database, MIGRATIONS, self.disk.effects)
        try:
            asyncio.run(self._live(InstallationState(database), deed))
        finally:
            database.close()

    async def _live(self, state: InstallationState, deed: Deed | None) -> None:
        self.news = asyncio.Event()
        coordinator = Coordinator(
            directory=self.directory,
            state=state,
            settings=SETTINGS,
            sources={"main": self.source},
            serving=self.serving,
            workers=self.workers,
            worker_settings=WorkerSettings(),
            on_reported=self._hear,
            on_event=lambda kind, detail: None,
            disk=self.disk,
            installer=self._install,
        )
        await coordinator.start_active()
        if deed is None:
            return
        running = asyncio.create_task(coordinator.run())
        try:
            await deed(self, coordinator, state)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def _hear(self, reported: Reported) -> None:
        self.reported.append(reported)
        self.news.set()

    async def until_active(self, version: str) -> None:
        """Wait until the last report says that ``version`` is active and nothing is going on."""
        await self.until(
            lambda last: last.phase == "IDLE" and last.active is not None and last.active.version == version
        )

    async def until(self, holds: Callable[[Reported], bool]) -> None:
        """Wait until the last report is such that it ``holds``."""
        async with asyncio.timeout(60):
            while not (self.reported and holds(self.reported[-1])):
                self.news.clear()
                await self.news.wait()


Deed = Callable[[Life, Coordinator, InstallationState], Awaitable[None]]
