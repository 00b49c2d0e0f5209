"""The watchdog is fed while everything goes on, and not while something that should go on does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.app import STALLS_MISSED, Service
from agent.config import AgentConfig
from tests.agent.device import sealed


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of the notification socket; its watchdog waits for a fifth of a second."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    yield listener
    listener.close()


async def feeds(service: Service, manager: socket.socket, beats: int) -> int:
    """How often the watchdog is fed in so many beats."""
    said = []
    # Its neighbours are of no interest here; health goes nowhere.
    service._publish_health = lambda: said.append(1)  # type: ignore[method-assign]
    beating = asyncio.create_task(service._beat())
    while len(said) < beats and not beating.done():
        await asyncio.sleep(0.01)
    assert not beating.done(), beating.exception()
    beating.cancel()
    count = 0
    while True:
        try:
            count += b"WATCHDOG=1" in manager.recv(4096)
        except BlockingIOError:
            return count


def make_service(tmp_path: Path, silent: float) -> Service:
    service = Service(AgentConfig(device="d", state_dir=tmp_path))
    replicas = [
        SimpleNamespace(worker=SimpleNamespace(silence=silent), bundle=sealed()),
        SimpleNamespace(worker=None, bundle=sealed()),
    ]
    service._serving = SimpleNamespace(replicas=replicas, probe_store=lambda: None)  # type: ignore[assignment]
    service._state = SimpleNamespace(unwritable=None)  # type: ignore[assignment]
    service._gateway = SimpleNamespace(connection=SimpleNamespace(turns=0))  # type: ignore[assignment]
    return service


@pytest.mark.parametrize(("silent", "fed"), [(0.0, True), (1.0, True), (STALLS_MISSED + 0.1, False)])
def test_a_worker_that_nobody_ended_for_its_silence_starves_the_watchdog(
    tmp_path: Path, manager: socket.socket, silent: float, fed: bool
) -> None:
    service = make_service(tmp_path, silent)
    assert asyncio.run(feeds(service, manager, 3)) == (3 if fed else 0)


def test_a_part_of_the_agent_that_stands_still_starves_it(tmp_path: Path, manager: socket.socket) -> None:
    async def run() -> int:
        service = make_service(tmp_path, 0.0)
        service._progress.expect("telemetry", 0.0, asyncio.get_running_loop().time() - 1)
        return await feeds(service, manager, 3)

    assert asyncio.run(run()) == 0
