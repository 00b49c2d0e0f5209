"""A model that nobody asks is unloaded, and loaded again for whoever asks next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from agent.config import AgentConfig
from agent.serving.replica import Replica
from agent.worker.supervisor import WorkerProcess
from tests.agent.device import Device, sealed
from tests.agent.worker.double import FakeWorker, FakeWorkers
from tests.e2e.raw_client import RawClient

pytestmark = pytest.mark.broker

MakeDevice = Callable[..., Device]


def replica_of(device: Device) -> Replica:
    assert device.serving.replica is not None
    return device.serving.replica


def test_the_next_request_loads_the_model_again(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(), idle_unload=0.05).start(sealed())
    for turn in range(3):
        device.until(lambda: device.serving.unloaded)
        assert device.serving.reasons == [], "whoever asks is answered"
        client.ask(f"q{turn}", "count 4")
        assert client.wait_answer(f"q{turn}").text == "0 1 2 3 "
    assert len(device.workers.started) == 4
    assert (device.meter.crashes, device.meter.restarts) == (0, 0), "nothing went wrong"


def test_it_stays_loaded_while_somebody_is_answered(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(), idle_unload=0.05).start(sealed())
    client.send("long", "hold 2")
    device.until(lambda: bool(replica_of(device).running))
    worker = device.workers.current
    client.ask("short", "count 1")
    client.wait_answer("short")
    held = device.call(lambda: replica_of(device).worker)
    assert held is worker
    device.call(worker.let_go)
    client.wait_answer("long")
    device.until(lambda: device.serving.unloaded)


def test_what_does_not_load_again_is_tried_again(make_device: MakeDevice, client: RawClient) -> None:
    workers = FakeWorkers()
    device = make_device(workers=workers, idle_unload=0.05).start(sealed())
    device.until(lambda: device.serving.unloaded)
    workers.failures = 1
    client.ask("q", "count 2")
    assert client.wait_answer("q").text == "0 1 "


def test_an_unloaded_model_can_be_replaced(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(), idle_unload=0.05).start(sealed())
    device.until(lambda: device.serving.unloaded)
    device.run(device.serving.swap(sealed("other", "2.0.0"), "overlap"))
    client.ask("q", "count 2")
    assert client.wait_answer("q").bundle == "other@2.0.0"


class LingeringWorkers(FakeWorkers):
    """They take their time to end, as processes do."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, *arguments: Any, **options: Any) -> FakeWorker:
        worker = await super().__call__(*arguments, **options)
        end = worker.close

        async def close() -> None:
            self.ending.set()
            await self.may_end.wait()
            await end()

        worker.close = close  # type: ignore[method-assign]
        return worker


def test_who_asks_while_it_is_being_unloaded_is_answered_by_its_heir(
    make_device: MakeDevice, client: RawClient
) -> None:
    workers = LingeringWorkers()
    device = make_device(workers=workers, idle_unload=0.05).start(sealed())
    device.until(workers.ending.is_set)
    client.send("q", "count 2")
    device.until(lambda: device.serving.queued + device.serving.active == 1)
    device.call(workers.may_end.set)
    assert client.wait_answer("q").text == "0 1 "
    assert [len(worker.admitted) for worker in workers.started[:2]] == [0, 1]


def test_all_memory_comes_back_because_the_process_ends(
    make_device: MakeDevice, client: RawClient, tiny_bundle: Path
) -> None:
    device = make_device(idle_unload=2)
    device.config = msgspec.structs.replace(
        device.config, worker=msgspec.structs.replace(AgentConfig("x").worker, threads=1, max_bytes=8 << 20)
    )
    started: list[int] = []

    async def start(*arguments: Any, **options: Any) -> WorkerProcess:
        worker = await WorkerProcess.start(*arguments, **options)
        started.append(worker.pid)
        return worker

    workers: Any = start
    device.workers = workers
    device.start(sealed(directory=tiny_bundle))
    client.ask("one", "Say hello.", max_tokens=4)
    first = client.wait_answer("one").text
    device.until(lambda: device.serving.unloaded)
    assert started
    assert not any(map(psutil.pid_exists, started))
    client.ask("two", "Say hello.", max_tokens=4)
    assert client.wait_answer("two").text == first
