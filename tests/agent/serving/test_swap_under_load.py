"""Eight clients ask without pause while the bundle is swapped back and forth; real broker, ledger, queue and frames."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest

from agent.install.ports import Footprint, SwapMode
from agent.worker.protocol import Usage
from tests.agent.device import sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker
from tests.e2e.raw_client import RawClient

CLIENTS = 8
QUESTIONS = 12


@pytest.mark.parametrize("mode", ["overlap", "drain"])
def test_eight_clients_get_every_answer_once(
    make_device: MakeDevice, shared_broker: Broker, names: tuple[str, str], tmp_path: Path, mode: SwapMode
) -> None:
    device = make_device(workers=FakeWorkers(slots=3), queue_limit=1000, client_queue_limit=1000)
    device.start(sealed())
    clients = [RawClient(shared_broker.port, f"{names[1]}-{number}", names[0]) for number in range(CLIENTS)]

    def ask(client: RawClient) -> None:
        for number in range(QUESTIONS):
            client.ask(f"r{number}", "count 40")
            client.wait_until_fewer(3)
        client.wait_until_fewer(1)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    reports = []
    version = 0
    while any(thread.is_alive() for thread in threads):
        version += 1
        reports.append(device.run(device.serving.swap(sealed(version=f"1.0.{version}"), mode)))
    for thread in threads:
        thread.join()
    answers = [answer for client in clients for answer in client.answers.values()]
    for client in clients:
        client.close()
    assert len(answers) == CLIENTS * QUESTIONS
    assert [len(answer.lasts) for answer in answers] == [1] * len(answers), "none lost, none doubled"
    assert [answer.lasts[0].get("error") for answer in answers] == [None] * len(answers)
    assert {report.mode for report in reports} == {mode}
    assert len({answer.bundle for answer in answers}) > 1, "some were answered by the old, some by the new"
    device.until(lambda: len(device.serving.replicas) == 1)  # those that were left have gone


def test_the_next_worker_plans_with_what_the_last_one_gives_back(
    make_device: MakeDevice, names: tuple[str, str]
) -> None:
    """Otherwise it would serve ever after with the few places that there was memory for beside its predecessor."""
    device = make_device(workers=FakeWorkers())
    device.start(sealed())
    assert device.serving.footprint == Footprint()
    device.workers.current.usage = (Usage(1, 900, 800, 0.0, anonymous_bytes=300), 0.0)
    assert device.serving.footprint == Footprint(anonymous_bytes=300, mapped_bytes=600)
    for version, mode in (("2.0.0", "overlap"), ("3.0.0", "drain")):
        device.run(device.serving.swap(sealed(version=version), mode))  # type: ignore[arg-type]
    assert [worker.reclaimable_bytes for worker in device.workers.started] == [0, 300, 0]


@pytest.mark.parametrize("then", ["swap", "come back", "cancel"])
def test_what_steps_aside_for_a_candidate_loses_nothing(
    make_device: MakeDevice, shared_broker: Broker, names: tuple[str, str], then: str
) -> None:
    """Requests run, others wait, and more come while no model is loaded."""
    device = make_device(workers=FakeWorkers(slots=3), drain_seconds=600.0 if then == "cancel" else 0.05)
    device.start(sealed())
    client = RawClient(shared_broker.port, names[1], names[0])
    client.ask("long", "hold 9")
    device.until(lambda: device.serving.active == 1)
    if then == "cancel":
        leaving = device.call(lambda: asyncio.create_task(device.serving.suspend()))
        client.ask("meanwhile", "count 4")
        device.until(lambda: device.serving.queued == 1)  # though two places are free
        device.run(_cancel(leaving))
        assert device.serving.active == 1, "nothing happened to what runs"
        assert device.run(device.serving.resume()) is not None
    else:
        device.run(device.serving.suspend())
        assert device.serving.reasons == ["swapping"]
        assert [replica.worker for replica in device.serving.replicas] == [None], "its memory is free"
        client.ask("meanwhile", "count 4")
        device.until(lambda: device.serving.queued == 2)
    if then == "swap":
        queue_pause_ms = device.run(device.serving.swap(sealed(version="2.0.0"), "drain")).queue_pause_ms
        assert queue_pause_ms > 0
    elif then == "come back":
        queue_pause_ms = device.run(device.serving.resume())
        assert queue_pause_ms > 0
    device.until(lambda: device.serving.active == 1 and device.serving.queued == 0)
    device.call(device.workers.started[-1].let_go)
    answers = [client.wait_answer(name) for name in ("long", "meanwhile")]
    client.close()
    assert [len(answer.lasts) for answer in answers] == [1, 1]
    assert [answer.lasts[0]["attempt"] for answer in answers] == [1 if then == "cancel" else 2, 1]
    assert {answer.bundle for answer in answers} == {f"toy@{'2.0.0' if then == 'swap' else '1.0.0'}"}
    assert device.serving.reasons == []
    assert device.run(device.serving.resume()) is None, "it is back already"


async def _cancel(leaving: asyncio.Task[None]) -> None:
    assert not leaving.done(), "it waits for what runs, which does not end by itself"
    leaving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving
