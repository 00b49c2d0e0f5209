"""How fast a bundle is on this device: loaded into a worker of its own, asked, and ended again."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from agent.engine.interface import FinishEvent, Generation, RejectEvent, StepEvent, TokenEvent
from agent.worker.ports import Worker, WorkerStarter
from agent.worker.settings import WorkerSettings, usable_threads
from contract.errors import EngineFailed

PROMPT = (
    "The ferry left the harbour at half past six, and the mechanic who had repaired its pump during the night stood "
    "on the pier, counting lights until the fog took them. He wrote down what he had done and went home to sleep. "
)
"""Some fifty tokens for most tokenizers; the same for every bundle, so that they can be compared."""

MANY = 4
"""Streams at once in the second measurement, where the engine has as many places."""

FAIR_SHARE = 0.5
"""Of the context: prompt and answer fit in the rest of a small model's, too."""


class Speed(Struct, frozen=True):
    """Medians over rounds: milliseconds to the first token, tokens per second of all streams together."""

    streams: int
    first_token_ms: float
    tokens_per_second: float


class Measurement(Struct, frozen=True):
    """One bundle on this device. ``peak_rss_bytes`` counts mapped weights, as the bundle's budget does."""

    engine: str
    isolation: str
    threads: int
    tokens: int
    load_seconds: float
    peak_rss_bytes: int
    speeds: list[Speed]


async def measure(
    workers: WorkerStarter,
    settings: WorkerSettings,
    directory: Path,
    *,
    derived: Path | None = None,
    tokens: int = 128,
    rounds: int = 3,
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> Measurement:
    """Load, warm up once, then ``rounds`` times one stream and several.

    Raises:
        EngineFailed: it does not load, or its worker ended.
    """
    stopwatch = _Stopwatch()
    clock = asyncio.get_running_loop().time
    began = clock()
    worker = await workers(settings, directory, derived_dir=derived, on_event=stopwatch.note)
    try:
        loaded = clock() - began
        stopwatch.worker = worker
        tokens = max(2, min(tokens, int(worker.facts.context_length * FAIR_SHARE)))
        widths = sorted({1, min(MANY, worker.facts.slots)})
        of = 1 + rounds * len(widths)
        await stopwatch.run(1, tokens)
        on_round(1, of)
        found: dict[int, list[tuple[float, float]]] = {width: [] for width in widths}
        for number in range(rounds):
            for state_dir, width in enumerate(widths):
                found[width].append(await stopwatch.run(width, tokens))
                on_round(2 + number * len(widths) + state_dir, of)
        return Measurement(
            engine=worker.facts.engine,
            isolation=worker.isolation,
            threads=usable_threads(settings),
            tokens=tokens,
            load_seconds=round(loaded, 3),
            peak_rss_bytes=worker.peak_rss_bytes,
            speeds=[
                Speed(
                    width,
                    round(1000 * statistics.median(first for first, _ in pairs), 1),
                    round(statistics.median(speed for _, speed in pairs), 1),
                )
                for width, pairs in found.items()
            ],
        )
    finally:
        await worker.close()


class _Stopwatch:
    """Asks a worker and keeps the time of its events."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self._clock = asyncio.get_running_loop().time
        self._number = 0
        self._first: dict[int, float] = {}
        self._counted: dict[int, int] = {}
        self._open: set[int] = set()
        self._over = asyncio.Event()
        self._refused = ""

    def note(self, event: StepEvent) -> None:
        now = self._clock()
        if isinstance(event, TokenEvent):
            self._first.setdefault(event.request, now)
            return
        if isinstance(event, FinishEvent):
            self._first.setdefault(event.request, now)
            self._counted[event.request] = event.completion_tokens
        elif isinstance(event, RejectEvent):
            self._refused = event.message
        self._open.discard(event.request)
        if not self._open:
            self._over.set()

    async def run(self, streams: int, tokens: int) -> tuple[float, float]:
        """Seconds to the first token (the slowest stream's) and tokens per second of all, from the first one on."""
        assert self.worker is not None
        self._first.clear()
        self._counted.clear()
        self._over.clear()
        numbers = range(self._number, self._number + streams)
        self._number += streams
        self._open = set(numbers)
        began = self._clock()
        for number in numbers:
            # A client for each: a remembered prefix of another round would make the first token look cheap.
            self.worker.admit(
                Generation(number, f"bench-{number}", prompt=PROMPT, max_tokens=tokens, min_tokens=tokens)
            )
        over = asyncio.ensure_future(self._over.wait())
        closed = asyncio.ensure_future(self.worker.wait_closed())
        try:
            await asyncio.wait((over, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            closed.cancel()
        if not self._over.is_set():
            raise EngineFailed(f"the worker ended while it was measured: {await self.worker.wait_closed()}")
        if self._refused:
            raise EngineFailed(f"the model cannot answer the prompt that is measured with: {self._refused}")
        now = self._clock()
        first = min(self._first.values())
        # The first token of each stream is the prompt's work.
        made = sum(self._counted.values()) - streams
        return max(self._first.values()) - began, made / max(now - first, 1e-9)
