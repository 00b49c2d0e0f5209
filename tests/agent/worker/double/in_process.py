"""The double as a worker of this process: :mod:`agent.worker.ports` without a process behind it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.engine.interface import CanaryScore, Facts, Generation, StepEvent
from agent.worker.ports import OnEvent
from agent.worker.protocol import Usage
from agent.worker.settings import WorkerSettings
from contract.errors import EngineFailed
from tests.agent.worker.double.engine import ScriptedEngine, obey

_PIDS = itertools.count(1_000_000)

ENDS = {
    "crash": "killed by SIGSEGV",
    "killed": "killed by SIGKILL",
    "exit": "exit status 3: these are my last words",
}


class _Ended(Exception):
    """Where a process would be gone."""


class FakeWorker:
    """One "process". ``admitted`` keeps everything it was ever given, ``updates`` every change it was told of."""

    def __init__(self, bundle_dir: Path, slots: int, on_event: OnEvent) -> None:
        self.bundle_dir = bundle_dir
        self.isolation = "none"
        self.pid = next(_PIDS)
        self.usage: tuple[Usage, float] | None = None
        self.silence = 0.0
        self.reclaimable_bytes = 0
        self.peak_rss_bytes = 1
        self.admitted: list[Generation] = []
        self.updates: list[tuple[int, dict[str, Any]]] = []
        self._engine = ScriptedEngine(slots, self._mishap)
        self._on_event = on_event
        self._awake = asyncio.Event()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._running = asyncio.ensure_future(self._run())

    @property
    def facts(self) -> Facts:
        return self._engine.facts

    def admit(self, generation: Generation) -> None:
        self.admitted.append(generation)
        self._command(lambda: self._engine.admit(generation))

    def cancel(self, request: int) -> None:
        def later(events: list[StepEvent]) -> None:
            for event in events:
                self._say(event)

        self._command(lambda: asyncio.get_running_loop().call_soon(later, self._engine.cancel(request)))

    def update(self, request: int, changes: dict[str, Any]) -> None:
        self.updates.append((request, changes))
        self._command(lambda: self._engine.update(request, changes))

    async def score(
        self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None
    ) -> CanaryScore:
        if self._closed.done():
            raise EngineFailed(f"the worker has ended: {self._closed.result()}")
        try:
            return self._engine.score(prompt, text, adapter, picture)
        except _Ended as ended:
            self._end(str(ended))
            raise EngineFailed(f"the worker has ended: {ended}") from ended

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    async def close(self) -> None:
        self._end("closed")

    def kill(self) -> None:
        self._end("killed by SIGKILL")

    def let_go(self) -> None:
        """Those that hold go on."""
        self._engine.let_go()
        self._awake.set()

    def _mishap(self, word: str) -> None:
        if word in ENDS:
            raise _Ended(ENDS[word])
        obey(word)

    def _command(self, act: Callable[[], object]) -> None:
        """As a worker takes a command: whatever the engine raises ends it, and an ended one takes none."""
        if self._closed.done():
            return
        try:
            act()
        except EngineFailed as error:
            self._end(error.message)
        except _Ended as ended:
            self._end(str(ended))
        except Exception as error:  # as the product's own loop does
            self._end(f"{type(error).__name__}: {error}")
        self._awake.set()

    def _end(self, why: str) -> None:
        self._running.cancel()
        if not self._closed.done():
            self._closed.set_result(why)

    def _say(self, event: StepEvent) -> None:
        if not self._closed.done():
            self._on_event(event)

    async def _run(self) -> None:
        while True:
            while self._engine.busy:
                for event in self._engine.step():
                    self._say(event)
                await asyncio.sleep(0)
            self._awake.clear()
            await self._awake.wait()


class FakeWorkers:
    """Starts fake workers; ``failures`` says how many of the next starts fail, with ``failure``."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.failures = 0
        self.failure = EngineFailed("the model did not load: a test")
        self.started: list[FakeWorker] = []
        self.stall: asyncio.Event | None = None

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
    ) -> FakeWorker:
        if self.stall is not None:
            await self.stall.wait()
        if self.failures > 0:
            self.failures -= 1
            raise self.failure
        worker = FakeWorker(bundle_dir, self.slots, on_event)
        worker.reclaimable_bytes = reclaimable_bytes
        self.started.append(worker)
        return worker

    @property
    def current(self) -> FakeWorker:
        return self.started[-1]
