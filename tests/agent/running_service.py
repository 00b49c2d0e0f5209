"""The whole service in this process, in a thread with a loop of its own: real broker and state, fake workers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from agent.app import Service
from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from tests.agent.waiting import until
from tests.agent.worker.double import FakeWorkers

T = TypeVar("T")

SECONDS = 120.0


class RunningService:
    """``service`` is the real one; what belongs to its loop is reached by :meth:`call`."""

    def __init__(self, config: AgentConfig) -> None:
        self._loop = asyncio.new_event_loop()
        self.workers = FakeWorkers()
        self.service = Service(config, self.workers)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self.service.run()], daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        async def inner() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(inner(), self._loop).result(SECONDS)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SECONDS)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds`` does, which is asked once the parts are there."""
        assembled = until(lambda: hasattr(self.service, "presence") and holds())
        asyncio.run_coroutine_threadsafe(assembled, self._loop).result(SECONDS)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self.service.stop)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        self._loop.close()


@contextlib.contextmanager
def running(config: AgentConfig) -> Iterator[RunningService]:
    made = RunningService(config)
    try:
        yield made
    finally:
        made.stop()


def settings(state_dir: Path, port: int) -> AgentConfig:
    """A device without sources on a broker of this machine."""
    return AgentConfig("box", state_dir=state_dir, broker=BrokerSettings(host="127.0.0.1", port=port))
