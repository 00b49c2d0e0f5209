"""The watchdog is fed while everything goes on, and not while something that should go on does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.heartbeat import STALLS_MISSED, Heartbeat
from agent.state.layout import StateDirectory
from agent.systemd.notify import Notifier
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


class Health:
    """In place of what the agent says of itself: counts how often it is to be said."""

    def __init__(self) -> None:
        self.published = 0

    def publish(self) -> None:
        self.published += 1


async def feeds(heartbeat: Heartbeat, health: Health, manager: socket.socket, beats: int) -> int:
    """How often the watchdog is fed in so many beats."""
    beating = asyncio.create_task(heartbeat.run())
    while health.published < beats and not beating.done():
        await asyncio.sleep(0.01)
    assert not beating.done(), beating.exception()
    beating.cancel()
    count = 0
    while True:
        try:
            count += b"WATCHDOG=1" in manager.recv(4096)
        except BlockingIOError:
            return count


def make_heartbeat(tmp_path: Path, silent: float) -> tuple[Heartbeat, Health]:
    """Its neighbours are of no interest here."""
    replicas = [
        SimpleNamespace(worker=SimpleNamespace(silence=silent), bundle=sealed()),
        SimpleNamespace(worker=None, bundle=sealed()),
    ]
    frontend = SimpleNamespace(
        serving=SimpleNamespace(replicas=replicas, probe_store=lambda: None),
        gateway=SimpleNamespace(connection=SimpleNamespace(turns=0)),
    )
    parts: Any = SimpleNamespace(frontend=frontend, state=SimpleNamespace(unwritable=None))
    health, control = Health(), SimpleNamespace(listening=True)
    return Heartbeat(parts, health, control, StateDirectory(tmp_path), Notifier.from_environment()), health  # type: ignore[arg-type]


@pytest.mark.parametrize(("silent", "fed"), [(0.0, True), (1.0, True), (STALLS_MISSED + 0.1, False)])
def test_a_worker_that_nobody_ended_for_its_silence_starves_the_watchdog(
    tmp_path: Path, manager: socket.socket, silent: float, fed: bool
) -> None:
    assert asyncio.run(feeds(*make_heartbeat(tmp_path, silent), manager, 3)) == (3 if fed else 0)


def test_a_part_of_the_agent_that_stands_still_starves_it(tmp_path: Path, manager: socket.socket) -> None:
    async def run() -> int:
        heartbeat, health = make_heartbeat(tmp_path, 0.0)
        heartbeat.liveness.expect("telemetry", 0.0, asyncio.get_running_loop().time() - 1)
        return await feeds(heartbeat, health, manager, 3)

    assert asyncio.run(run()) == 0
