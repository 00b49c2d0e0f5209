"""Whoever stops waiting for an answer ends it on the device, however it came about: against a real broker and agent."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from contract.errors import SourceUnavailable
from edge_bundle import AsyncClient, BrokerAddress, Client
from tests.agent.device import Device, sealed
from tests.agent.waiting import until
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = Broker(tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def device(broker: Broker, tmp_path: Path) -> Iterator[Device]:
    config = AgentConfig(
        device="box", state_dir=tmp_path, groups=["boxes"], broker=BrokerSettings(host="127.0.0.1", port=broker.port),
        serving=ServingSettings(stop_seconds=0, stream_interval_ms=0),
    )  # fmt: skip
    made = Device(config, tmp_path / "state.db", FakeWorkers(slots=2)).start(sealed())
    yield made
    made.stop()


@pytest.fixture
def address(broker: Broker) -> BrokerAddress:
    return BrokerAddress("127.0.0.1", broker.port)


def wait_for_cancellation(device: Device) -> None:
    """Until the device has counted one more request that was cancelled, and none runs."""
    device.until(lambda: device.meter.requests.get("cancelled") == 1 and device.serving.active == 0)


async def leave_the_loop(client: AsyncClient, device: Device) -> None:
    async for _ in client.stream(device="box", prompt="hold 9"):
        break


async def fail_in_the_loop(client: AsyncClient, device: Device) -> None:
    with pytest.raises(ZeroDivisionError):
        async for _ in client.stream(device="box", prompt="hold 9"):
            raise ZeroDivisionError


async def close_the_stream(client: AsyncClient, device: Device) -> None:
    stream = client.stream(device="box", prompt="hold 9")
    await anext(stream)
    await stream.aclose()


async def cancel_the_task(client: AsyncClient, device: Device) -> None:
    task = asyncio.create_task(client.complete(device="box", prompt="hold 9"))
    await running(device)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def time_out_outside(client: AsyncClient, device: Device) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            async for _ in client.stream(device="box", prompt="hold 9"):
                limit.reschedule(asyncio.get_running_loop().time())


def shown(client: AsyncClient) -> list[str]:
    """What has come of each answer that it waits for."""
    return [each.session._reassembly.shown for pending in client._pending.values() for each in pending]


def no_time_left(client: AsyncClient) -> None:
    """As if the time of all that it asked were over now."""
    for pending in client._pending.values():
        for each in pending:
            each.session._deadline = asyncio.get_running_loop().time()
            each.inbox.put_nowait(None)


async def time_out(client: AsyncClient, device: Device) -> None:
    asked = asyncio.create_task(client.complete(device="box", prompt="hold 9", stream=True, timeout=900))
    await until(lambda: shown(client) == ["0 "])
    no_time_left(client)
    late = "the answer of box was not complete within 900 s: 2 characters had come"
    with pytest.raises(SourceUnavailable, match=late):
        await asked


async def leave_a_chat(client: AsyncClient, device: Device) -> None:
    chat = client.chat(device="box", system="Be brief.")
    async for _ in chat.stream("hold 9"):
        break
    assert [each["role"] for each in chat.messages] == ["system"]


async def cancel_before_a_member_answers(client: AsyncClient, device: Device) -> None:
    task = asyncio.create_task(client.complete(group="boxes", prompt="wait 9"))
    await running(device)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def running(device: Device) -> None:
    await asyncio.to_thread(device.until, lambda: device.serving.active == 1)


WAYS = [
    leave_the_loop, fail_in_the_loop, close_the_stream, cancel_the_task, time_out_outside, time_out, leave_a_chat,
    cancel_before_a_member_answers,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_leaving_ends_it_on_the_device(
    device: Device, address: BrokerAddress, way: Callable[[AsyncClient, Device], Awaitable[None]]
) -> None:
    async def scenario() -> None:
        async with AsyncClient(address) as client:
            await way(client, device)
            # While the client goes on, not because it ends.
            await asyncio.to_thread(wait_for_cancellation, device)

    asyncio.run(scenario())


def test_another_who_asks_the_same_keeps_it_going(device: Device, address: BrokerAddress) -> None:
    async def scenario() -> str:
        async with AsyncClient(address) as client:
            one, two = (
                asyncio.create_task(client.complete(device="box", id="same", prompt="hold 2", timeout=120))
                for _ in range(2)
            )
            await running(device)
            one.cancel()
            await asyncio.wait([one])
            device.call(device.workers.current.let_go)
            return (await two).choices[0].message.content

    assert asyncio.run(scenario()) == "0 1 "
    assert "cancelled" not in device.meter.requests


def test_closing_the_client_ends_what_is_under_way(device: Device, address: BrokerAddress) -> None:
    async def scenario() -> None:
        async with AsyncClient(address) as client:
            asked = asyncio.create_task(client.complete(device="box", prompt="hold 9"))
            await running(device)
        with pytest.raises(SourceUnavailable, match="closed"):
            await asked

    asyncio.run(scenario())
    wait_for_cancellation(device)


def test_the_sync_client_ends_what_a_loop_leaves(device: Device, address: BrokerAddress) -> None:
    with Client(address) as client:
        for _ in client.stream(device="box", prompt="hold 9"):
            break
        wait_for_cancellation(device)


def test_the_sync_client_ends_what_is_late_or_left_open(device: Device, address: BrokerAddress) -> None:
    with Client(address) as client:
        with ThreadPoolExecutor(1) as thread:
            late = thread.submit(client.complete, device="box", prompt="hold 9", stream=True, timeout=900)
            client._loop.run(lambda: until(lambda: shown(client._core) == ["0 "]))
            client._loop.call(lambda: no_time_left(client._core))
            with pytest.raises(SourceUnavailable, match="not complete within 900 s"):
                late.result()
        wait_for_cancellation(device)
        stream = client.stream(device="box", prompt="hold 9")
        next(stream)
    device.until(lambda: device.meter.requests.get("cancelled") == 2)
    stream.close()


def test_a_client_that_nobody_closed_ends_what_it_asked(device: Device, address: BrokerAddress) -> None:
    client = Client(address)
    stream = client.stream(device="box", prompt="hold 9")
    next(stream)
    del stream, client
    gc.collect()
    wait_for_cancellation(device)


def test_the_garbage_collector_may_end_a_client_in_its_own_thread(
    device: Device, address: BrokerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    client = Client(address)
    circle: list[object] = [client.stream(device="box", prompt="hold 9")]
    next(circle[0])  # type: ignore[call-overload]
    circle += [client, circle]
    loop = client._loop
    del client, circle
    loop.call(gc.collect)
    wait_for_cancellation(device)
    assert unraisable == []


def test_threads_share_a_client(device: Device, address: BrokerAddress) -> None:
    found: list[str] = []
    with Client(address) as client:

        def ask(count: int) -> None:
            found.append(client.complete(device="box", prompt=f"count {count}", timeout=120).choices[0].message.content)

        threads = [threading.Thread(target=ask, args=[count]) for count in range(1, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == ["".join(f"{n} " for n in range(count)) for count in range(1, 6)]


ASYNC_PROGRAM = """
import asyncio, sys
from edge_bundle import AsyncClient

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        async for chunk in client.stream(device="box", prompt="hold 9"):
            print(chunk.choices[0].delta.content, flush=True)

asyncio.run(main())
"""

SYNC_PROGRAM = """
import sys
from edge_bundle import Client

client = Client(sys.argv[1])
for chunk in client.stream(device="box", prompt="hold 9"):
    print(chunk.choices[0].delta.content, flush=True)
"""


@pytest.mark.parametrize(
    "command",
    [
        ["-c", ASYNC_PROGRAM, "URL"],
        ["-c", SYNC_PROGRAM, "URL"],
        ["-m", "packager.cli", "prompt", "hold 9", "--raw", "--device", "box", "--broker", "URL"],
        ["-m", "packager.cli", "prompt", "hold 9", "--raw", "--json", "--device", "box", "--broker", "URL"],
    ],
    ids=["asyncio", "sync", "command", "command-json"],
)
def test_interrupting_a_program_ends_it_on_the_device(device: Device, broker: Broker, command: list[str]) -> None:
    command = [sys.executable, *(broker.url if each == "URL" else each for each in command)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        device.until(lambda: device.serving.active == 1)
        if "--json" not in command:
            assert program.stdout is not None
            assert program.stdout.read(1) == "0"
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=120)
    wait_for_cancellation(device)
    if "packager.cli" in command:
        assert (program.returncode, errors) == (130, "edge-packager: interrupted\n")
    else:
        assert "KeyboardInterrupt" in errors
