"""Stand-ins that keep the protocols of serving, workers and installer, and a coordinator on top of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.engine.interface import CanaryScore, Facts, FinishEvent, Generation
from agent.install.compose import make_reconciler
from agent.install.ports import Footprint, SealedBundle, ServingCounters, SwapMode, SwapReport
from agent.install.prepack import Prepacker
from agent.install.process.installer import run_job
from agent.install.process.messages import Job, Line
from agent.install.reconciler import Reconciler
from agent.install.settings import InstallSettings
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.schema import SCHEMA
from agent.worker.ports import OnEvent
from agent.worker.settings import WorkerSettings
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.errors import EngineFailed
from contract.mqtt.reports import Reported
from contract.mqtt.topics import EventType
from contract.system.durable import Disk

PATIENCE_SECONDS = 120.0
"""Weights are prepacked at the lowest priority: beside other tests that takes as long as those leave nothing over."""

QUIET = ServingCounters(finished=0, failed=0, crashes=0, speed=None)


class StandInWorker:
    """A worker that predicts exactly as the build did, unless told otherwise."""

    def __init__(
        self, bundle_dir: Path, drift: float, finite: bool, peak: int, on_event: OnEvent, *, stops: bool = True
    ) -> None:
        self._on_event, self._stops = on_event, stops
        self._manifest = parse_manifest((bundle_dir / MANIFEST_FILE).read_bytes())
        self._drift, self._finite = drift, finite
        self.misread = 0.0
        self.peak_rss_bytes = peak
        self.closed = False
        self._closing = asyncio.Event()
        self.facts = Facts("stand-in", "a test", 1, 1024, 1024, (), 0.0)
        self.isolation = "none"
        self.pid = 0

    def admit(self, generation: Generation) -> None:
        end = FinishEvent(generation.request, "stop" if self._stops else "length", "", 3, generation.max_tokens or 1)
        asyncio.get_running_loop().call_soon(self._on_event, end)

    def cancel(self, request: int) -> None: ...

    def update(self, request: int, changes: dict[str, Any]) -> None: ...

    async def score(
        self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None
    ) -> CanaryScore:
        shown = self._manifest.picture_canary
        if shown is not None and picture == shown.picture:
            return CanaryScore(shown.mean_nll + self.misread, 5, self._finite)
        canary = next(each for each in self._manifest.canary if each.prompt == prompt)
        return CanaryScore(canary.mean_nll + self._drift, 5, self._finite)

    async def wait_closed(self) -> str:
        await self._closing.wait()
        return "closed"

    async def close(self) -> None:
        self.closed = True
        self._closing.set()

    def kill(self) -> None: ...


class StandInWorkers:
    """Starts stand-ins; ``misread`` is how far they drift about a picture; ``failure`` makes loading fail, ``hang``
    makes it never end, ``hang_above`` a niceness.
    """

    def __init__(self) -> None:
        self.drift, self.finite, self.peak = 0.0, True, 1000
        self.misread = 0.0
        self.failure: str | None = None
        self.stops = True
        self.hang = False
        self.hang_above = 19
        self.on_hang: Callable[[], None] = lambda: None
        self.started: list[StandInWorker] = []
        self.niceness: list[int] = []
        self.leaving: list[int] = []
        self.begun = asyncio.Event()

    async def __call__(
        self,
        settings: WorkerSettings,
        bundle_dir: Path,
        *,
        derived_dir: Path | None = None,
        adapters: Mapping[str, Path] | None = None,
        nice: int = 0,
        reclaimable_bytes: int = 0,
        on_event: OnEvent,
    ) -> StandInWorker:
        self.begun.set()
        self.niceness.append(nice)
        self.leaving.append(reclaimable_bytes)
        if self.hang or nice > self.hang_above:
            self.on_hang()
            await asyncio.Event().wait()
        if self.failure is not None:
            raise EngineFailed(self.failure)
        worker = StandInWorker(bundle_dir, self.drift, self.finite, self.peak, on_event, stops=self.stops)
        worker.misread = self.misread
        self.started.append(worker)
        return worker


class StandInServing:
    """Serves nothing, remembers everything."""

    def __init__(self) -> None:
        self.bundle: SealedBundle | None = None
        self.swaps: list[tuple[str, SwapMode]] = []
        self.seen = QUIET
        self.after_swap = QUIET
        self.refuses: set[str] = set()
        self.swapped = asyncio.Event()
        self.aside = False
        self.moves: list[str] = []
        self.footprint = Footprint()

    async def suspend(self) -> None:
        self.aside = True
        self.moves.append("aside")

    async def resume(self) -> float | None:
        if not self.aside:
            return None
        self.aside = False
        self.moves.append("back")
        return 34.5

    async def swap(self, bundle: SealedBundle, mode: SwapMode) -> SwapReport:
        if bundle.manifest.version in self.refuses:
            raise EngineFailed("the model does not load")
        self.aside = False
        self.moves.append("swap")
        self.bundle = bundle
        self.seen = self.after_swap
        self.swaps.append((bundle.manifest.version, mode))
        self.swapped.set()
        return SwapReport(mode=mode, queue_pause_ms=12.5)

    async def stop(self) -> None:
        self.bundle = None
        self.swaps.append(("-", "drain"))

    def mark_unavailable(self) -> None:
        self.moves.append("unavailable")

    def counters(self) -> ServingCounters:
        return self.seen


async def install_in_thread(job: Job, on_line: Callable[[Line], None]) -> None:
    """The real installer's work without the cost of its process."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[Line | None] = asyncio.Queue()

    def work() -> None:
        try:
            run_job(job, Disk(), lambda line: loop.call_soon_threadsafe(lines.put_nowait, line) and None)
        finally:
            loop.call_soon_threadsafe(lines.put_nowait, None)

    task = asyncio.create_task(asyncio.to_thread(work))
    while (line := await lines.get()) is not None:
        on_line(line)
    await task


class Stage:
    """A coordinator on a device, with everything that it said."""

    def __init__(self, directory: StateDirectory, sources: dict[str, str], settings: InstallSettings) -> None:
        self.directory = directory
        self.sources = sources
        self.settings = settings
        self.serving = StandInServing()
        self.workers = StandInWorkers()
        self.installer: Any = install_in_thread
        self.prepacker: Prepacker | None = None
        self.now: Callable[[], float] = time.time
        self.reported: list[Reported] = []
        self.hearers: list[Callable[[Reported], None]] = []
        self.events: list[tuple[EventType, dict[str, Any]]] = []
        self.news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Reconciler]:
        """An agent's life from start to kill: nothing is said good-bye to."""
        database = Database(self.directory.database, SCHEMA)
        self.state = InstallationState(database)
        reconciler = make_reconciler(
            directory=self.directory,
            state=self.state,
            settings=self.settings,
            sources=self.sources,
            serving=self.serving,
            workers=self.workers,
            worker_settings=WorkerSettings(),
            on_reported=self._hear,
            on_event=lambda kind, detail: self.events.append((kind, detail)),
            installer=self.installer,
            prepacker=self.prepacker,
            now=self.now,
        )
        await reconciler.start_active()
        running = asyncio.create_task(reconciler.run())
        try:
            yield reconciler
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            database.close()

    def restart(self) -> None:
        """What a new process begins with."""
        self.serving, self.workers = StandInServing(), StandInWorkers()
        self.reported, self.events = [], []

    def _hear(self, reported: Reported) -> None:
        self.reported.append(reported)
        for hearer in self.hearers:
            hearer(reported)
        self.news.set()

    async def until(self, holds: Callable[[Reported], bool]) -> Reported:
        """Wait for a report for which ``holds``; what was reported before counts."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for reported in self.reported:
                    if holds(reported):
                        return reported
                self.news.clear()
                await self.news.wait()

    async def settled(self, revision: str | None) -> Reported:
        """The last word on a revision."""
        return await self.until(
            lambda reported: (
                reported.revision == revision
                and reported.phase == "IDLE"
                and (reported.error is not None or self._active_is_wanted(reported))
            )
        )

    def _active_is_wanted(self, reported: Reported) -> bool:
        return reported is self.reported[-1] and reported.active is not None

    @property
    def phases(self) -> list[str]:
        """The phases in the order in which they were reported, repetitions left out."""
        seen: list[str] = []
        for reported in self.reported:
            if not seen or seen[-1] != reported.phase:
                seen.append(reported.phase)
        return seen


def desired(version: str, revision: str | None = None, **more: object) -> bytes:
    """A desired document for the market's bundle."""
    document = {"revision": revision or f"r{version}", "bundle": {"name": "tiny", "version": version}, **more}
    return msgspec.json.encode(document)
