"""One agent's life in this process, deterministic to the effect: no timers, no processes of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from agent.host.facts import Host
from agent.install import prepack
from agent.install.compose import make_reconciler
from agent.install.download import pipeline as download_pipeline
from agent.install.prepack import DiskLimits, WeightPrepacker
from agent.install.process.installer import run_job
from agent.install.process.messages import Job, Line, Progressed
from agent.install.reconciler import Reconciler
from agent.install.settings import InstallSettings
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.schema import SCHEMA
from agent.worker.settings import WorkerSettings
from contract.mqtt.reports import Reported
from contract.system.durable import Disk, Effects
from tests.agent.install.stage import StandInServing, StandInWorkers

T = TypeVar("T")

KILLED = 77
"""Exit status of a process whose power was cut."""

SETTINGS = InstallSettings(probation_seconds=0, swap="drain", swaps_per_hour=0, max_attempts=100)


CPU = "this-cpu"
"""Derived weights lie under this name."""

STEPS = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "os.truncate"})
"""What an effect is made of, as the interpreter announces it to audit hooks."""


class NumberedEffects(Effects):
    """Counts the points at which the power can go: before each effect, between the steps it is made of, after it.

    ``cut`` is called at the point with that number, and may not return.
    """

    def __init__(self, cut_at: int = 0, cut: Callable[[], None] = lambda: os._exit(KILLED)) -> None:
        self.points: list[str] = []
        self._cut_at = cut_at
        self._cut = cut
        self._within: str | None = None
        self._steps = 0
        self._listening = False

    def perform(self, kind: str, target: str, action: Callable[[], T]) -> T:
        if not self._listening:
            self._listening = True
            sys.addaudithook(self._hear)  # for good: the process is one that ends
        effect = f"{kind} {target}"
        self._reach(f"before {effect}")
        self._within, self._steps = effect, 0
        try:
            result = action()
        finally:
            self._within = None
        self._reach(f"after {effect}")
        return result

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._within is None or event not in STEPS:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        self._steps += 1
        # Before its first step an effect has not begun.
        if self._steps > 1:
            effect, self._within = self._within, None
            self._reach(f"within {effect} ({event})")
            self._within = effect

    def _reach(self, point: str) -> None:
        self.points.append(point)
        if len(self.points) == self._cut_at:
            self._cut()


async def derive(bundle: Path, target: Path, settings: WorkerSettings, weights: bool) -> None:
    """Stands in for the process that makes prepacked weights: writes files and flushes nothing."""
    for name in ("model.onnx", "model.onnx.data"):
        (target / name).write_bytes((bundle / "model.onnx").read_bytes())


class Life:
    """From the start of an agent to its end; ``effects`` says where that is."""

    def __init__(
        self, directory: StateDirectory, source: str, disk: Disk, host: Host, settings: InstallSettings = SETTINGS
    ) -> None:
        self.directory = directory
        self.source = source
        self.disk = disk
        self.settings = settings
        self.serving = StandInServing()
        self.workers = StandInWorkers()
        self.reported: list[Reported] = []
        self.fetched = 0
        # Probing the CPU starts a process for every installation and changes nothing on disk.
        download_pipeline.measure_host = lambda place: host
        prepack._run = derive

    async def install(self, job: Job, on_line: Callable[[Line], None]) -> None:
        def hear(line: Line) -> None:
            if isinstance(line, Progressed):
                self.fetched = line.fetched
            on_line(line)

        run_job(job, self.disk, hear)

    def live(self, deed: Deed | None = None) -> None:
        """Start the agent, do ``deed`` beside it, end it."""
        database = Database(self.directory.database, SCHEMA, self.disk.effects)
        try:
            asyncio.run(self._live(InstallationState(database), deed))
        finally:
            database.close()

    async def _live(self, state: InstallationState, deed: Deed | None) -> None:
        self.news = asyncio.Event()
        reconciler = make_reconciler(
            directory=self.directory,
            state=state,
            settings=self.settings,
            sources={"main": self.source},
            serving=self.serving,
            workers=self.workers,
            worker_settings=WorkerSettings(),
            on_reported=self._hear,
            on_event=lambda kind, detail: None,
            disk=self.disk,
            installer=self.install,
            prepacker=WeightPrepacker(self.directory, self.disk, identity=CPU, limits=DiskLimits(spare_bytes=0)),
        )
        await reconciler.start_active()
        if deed is None:
            return
        running = asyncio.create_task(reconciler.run())
        try:
            await deed(self, reconciler, state)
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


Deed = Callable[[Life, Reconciler, InstallationState], Awaitable[None]]
