"""Hearing what a worker says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.engine.interface import StepEvent
from agent.worker.ports import Worker
from tests.agent.engine.driving import Outcome, record

PATIENCE = 120.0


class Listener:
    """Collects events; ``until`` waits for what is expected."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._changed = asyncio.Event()

    def __call__(self, event: StepEvent) -> None:
        record([event], self.outcomes)
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def ended(self, *requests: int) -> None:
        await self.until(lambda: all(self.has_ended(number) for number in requests))

    def has_ended(self, number: int) -> bool:
        outcome = self.outcomes.get(number)
        return outcome is not None and (outcome.finish is not None or outcome.reject is not None)


async def closed(worker: Worker) -> str:
    return await asyncio.wait_for(worker.wait_closed(), PATIENCE)
