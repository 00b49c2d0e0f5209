"""Eight clients ask without pause while the bundle is swapped back and forth; real broker, ledger, queue and frames."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from agent.install.ports import SwapMode
from tests.agent.device import sealed
from tests.agent.fake_worker import FakeWorkers
from tests.agent.serving.conftest import MakeDevice
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
            client.wait_until_fewer(3, 60)
        client.wait_until_fewer(1, 60)

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
    assert len(device.run(_seats(device))) == 1, "those that were left have gone"


async def _seats(device: object) -> list[object]:

    serving = device.serving  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        while len(serving.seats) > 1:
            await asyncio.sleep(0.01)
    return list(serving.seats)
