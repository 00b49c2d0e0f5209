"""A worker without a model: implements ``agent.worker.ports`` in this process, quick and obedient.

What it does is said by the last word line of the prompt: ``count N`` gives N tokens, ``hold`` gives one token and then
waits for :meth:`FakeWorker.let_go`, ``wait`` gives none until then, ``reject`` is refused like an overlong prompt. With
tools, it thinks and calls the first of them with the last word.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.engine.interface import (
    CallDelta,
    CanaryScore,
    Facts,
    FinishEvent,
    Generation,
    RejectEvent,
    StepEvent,
    TokenEvent,
)
from agent.worker.protocol import Usage
from agent.worker.settings import WorkerSettings
from contract.errors import EngineFailed

_PIDS = itertools.count(1_000_000)


def prompt_of(generation: Generation) -> str:
    if generation.messages is None:
        return generation.prompt or ""
    content = generation.messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part or "" for part in content)


class FakeWorker:
    """One "process". ``admitted`` keeps everything it was ever given."""

    def __init__(self, bundle_dir: Path, slots: int, on_event: Callable[[StepEvent], None]) -> None:
        self.bundle_dir = bundle_dir
        self.facts = Facts("fake", "a test", slots, 4096, 1000, ("logprobs",), 0.0)
        self.isolation = "none"
        self.pid = next(_PIDS)
        self.usage: tuple[Usage, float] | None = None
        self.reclaimable_bytes = 0
        self.peak_rss_bytes = 1
        self.admitted: list[Generation] = []
        self.updates: list[tuple[int, dict[str, Any]]] = []
        self._on_event = on_event
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._go = asyncio.Event()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def admit(self, generation: Generation) -> None:
        self.admitted.append(generation)
        if not self._closed.done():
            self._tasks[generation.request] = asyncio.ensure_future(self._run(generation))

    def cancel(self, request: int) -> None:
        task = self._tasks.pop(request, None)
        if task is not None and not self._closed.done():
            task.cancel()
            asyncio.get_running_loop().call_soon(
                self._say, FinishEvent(request, "cancelled", "", prompt_tokens=3, completion_tokens=1)
            )

    def update(self, request: int, changes: dict[str, Any]) -> None:
        self.updates.append((request, changes))

    async def score(self, prompt: str, text: str, adapter: str | None = None) -> CanaryScore:
        return CanaryScore(1.0, 1, True)

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    async def close(self) -> None:
        self._end("closed")

    def kill(self) -> None:
        self._end("killed by SIGKILL")

    def let_go(self) -> None:
        """Those that hold go on."""
        self._go.set()

    def _end(self, why: str) -> None:
        for task in self._tasks.values():
            task.cancel()
        if not self._closed.done():
            self._closed.set_result(why)

    def _say(self, event: StepEvent) -> None:
        if not self._closed.done():
            self._on_event(event)

    async def _run(self, generation: Generation) -> None:
        words = prompt_of(generation).split()
        number = generation.request
        if words[0] == "reject":
            self._say(RejectEvent(number, 400, "context_length", "the prompt is too long", "messages"))
            return
        if generation.tools is not None and generation.tools.choice != "none":
            self._call(number, generation.tools.definitions[0]["function"]["name"], words[-1])
            return
        if words[0] == "wait":
            await self._go.wait()
        count = int(words[1]) if len(words) > 1 and words[1].isdigit() else 3
        if generation.max_tokens is not None:
            count = min(count, generation.max_tokens)
        for index in range(count):
            for choice in range(generation.n):
                text = f"{index} " if choice == 0 else f"{index}.{choice} "
                self._say(TokenEvent(number, text, index + 1, choice=choice))
            if words[0] == "hold" and index == 0:
                await self._go.wait()
            await asyncio.sleep(0)
        self._tasks.pop(number, None)
        end = FinishEvent(number, "stop", "", prompt_tokens=len(words), completion_tokens=count * generation.n)
        if generation.n > 1:
            end = replace(end, reasons=["stop"] * generation.n, choice=generation.n - 1, text="!")
        self._say(end)

    def _call(self, number: int, name: str, word: str) -> None:
        self._tasks.pop(number, None)
        self._say(TokenEvent(number, "", 1, thought="Hm, "))
        self._say(TokenEvent(number, "", 2, thought="well."))
        self._say(TokenEvent(number, "", 3, calls=[CallDelta(0, "call_1", name), CallDelta(0, arguments='{"word": ')]))
        tail = [CallDelta(0, arguments=f'"{word}"}}')]
        self._say(FinishEvent(number, "tool_calls", "", prompt_tokens=1, completion_tokens=4, calls=tail))


class FakeWorkers:
    """Starts fake workers; ``failures`` says how many of the next starts fail."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.failures = 0
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
        on_event: Callable[[StepEvent], None],
    ) -> FakeWorker:
        if self.stall is not None:
            await self.stall.wait()
        if self.failures > 0:
            self.failures -= 1
            raise EngineFailed("the model did not load: a test")
        worker = FakeWorker(bundle_dir, self.slots, on_event)
        worker.reclaimable_bytes = reclaimable_bytes
        self.started.append(worker)
        return worker

    @property
    def current(self) -> FakeWorker:
        return self.started[-1]
