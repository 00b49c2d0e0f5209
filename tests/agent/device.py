"""A device whose serving half is real (broker connection, ledger, queue, frames) and whose workers are fake."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from agent.config import AgentConfig
from agent.frontend import make_frontend
from agent.install.ports import SealedBundle
from agent.state.broker_memory import BrokerMemory
from agent.state.database import Database
from agent.state.schema import SCHEMA
from contract.bundle.manifest import (
    Budget,
    FileEntry,
    License,
    Manifest,
    Model,
    Requires,
)
from contract.identifiers import Digest
from contract.mqtt.device import Health, Info, Limits
from tests.agent.waiting import until
from tests.agent.worker.double import FakeWorkers
from tests.proofs import pretend_verified

T = TypeVar("T")

SECONDS = 120.0
"""Until something that takes milliseconds counts as not happening."""


def sealed(name: str = "toy", version: str = "1.0.0", directory: Path = Path("/nowhere")) -> SealedBundle:
    """A bundle that only its name matters of, or what lies in ``directory`` too."""
    digest = Digest(f"{abs(hash((name, version))):064x}"[-64:])
    manifest = Manifest(
        schema="edge-bundle/1",
        name=name,
        version=version,
        security_epoch=0,
        created="2026-01-01T00:00:00Z",
        files=[FileEntry("model.onnx", 0, "0" * 64, "model", [])],
        model=Model("llama", "LlamaForCausalLM", 1, "int4", 32, 4, "rtn", 4096, 1000, None, "cpu", []),
        requires=Requires(["x86_64"], [], 0, 0, "", "", ""),
        budget=Budget(1, 1.0, 1.0, "test", 1),
        canary=[],
        quality={},
        license=License("unknown"),
        provenance={},
    )
    return SealedBundle(pretend_verified(directory, digest, manifest))


class Device:
    """Runs in a thread with an event loop of its own, so that tests can be plain functions with blocking clients."""

    def __init__(
        self,
        config: AgentConfig,
        state: Path,
        workers: FakeWorkers | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self._clock = clock
        self.state = state
        self.workers = workers or FakeWorkers()
        self.boot_id = uuid.uuid4().hex
        self.desired: list[bytes] = []
        self.on_desired: Callable[[bytes, bool], None] = lambda payload, _retained: self.desired.append(payload)
        self.health_changes = 0
        self.queued_last = 0
        """As whoever publishes ``health`` counts it when it is told that this changed."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, bundle: SealedBundle | None = None, *, settle: bool = True, connect: bool = True) -> Device:
        """Recover, connect (and wait for that, unless ``connect`` is false) and, with a bundle, serve it."""
        self.run(self._start())
        if connect:
            self.until(lambda: self.gateway.connection.subscribed)
        if bundle is not None:
            self.run(self.serving.swap(bundle, "drain"))
        if settle:
            self.call(self.serving.startup_finished)
        return self

    async def _start(self) -> None:
        self.database = Database(self.state, SCHEMA)
        frontend = make_frontend(
            self.config,
            self.database,
            BrokerMemory(self.state.with_suffix(".broker"), self.config.broker.identity),
            self.workers,
            boot_id=self.boot_id,
            clock=self._clock,
        )
        self.gateway, self.serving = frontend.gateway, frontend.serving
        self.gateway.on_desired.add(self.on_desired)
        self.gateway.on_broker.add(self._on_health)
        self.serving.on_health.add(self._on_health)
        self.serving.on_load.add(self._on_load)
        self.result_store, self.meter = frontend.result_store, frontend.meter
        limits = Limits(1, 1, 1, 1, 1, 1, 1)
        self.gateway.info(Info(self.config.device, "edge/v1", list(self.config.groups), {}, {}, limits, None, None))
        await self.serving.recover()
        self._tasks.append(asyncio.create_task(self.gateway.run()))

    def _on_load(self, _queued: int) -> None:
        self.queued_last = self.serving.queued

    def _on_health(self) -> None:
        self.health_changes += 1
        reasons = self.serving.reasons
        self.gateway.health(Health(not reasons, reasons, 0, 0))

    def run(self, coroutine: Coroutine[Any, Any, T], seconds: float = SECONDS) -> T:
        """Run in the device's loop and wait."""
        return self.begin(coroutine).result(seconds)

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run in the device's loop, without waiting."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[[], T]) -> T:
        async def inner() -> T:
            return function()

        return self.run(inner())

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds, looked at in the device's loop."""
        self.run(until(condition))

    def kill(self) -> None:
        """Vanish as a killed process does: nothing is finished, nothing said; what was committed stays."""
        if not self._loop.is_running():
            return

        async def inner() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for replica in self.serving.replicas:
                await replica.close()
            await self.result_store.close()
            self.database.close()

        self.run(inner())
        self._end_loop()

    def stop(self) -> None:
        """End as SIGTERM does."""
        if not self._loop.is_running():
            return

        async def inner() -> None:
            await self.serving.shutdown()
            await self.gateway.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.result_store.close()
            self.database.close()

        self.run(inner())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
