"""Workers that somebody else starts because we connect: systemd's own activator stands in for a booted systemd."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess
from contract.errors import EngineFailed
from tests.agent.worker.double import DOUBLE
from tests.agent.worker.listening import PATIENCE, Listener, closed
from tests.agent.worker.test_supervisor import hello


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def listens(path: Path) -> bool:
    """Whether a socket that is bound there accepts connections: it is bound a moment before it does."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(fields[3] == "00010000" and fields[-1] == str(path) for fields in sockets)


@pytest.fixture
def activator(tmp_path: Path) -> Iterator[Path]:
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("systemd is not installed")
    path = tmp_path / "worker.sock"
    # setpriv would be systemd's part too; here the worker is ours, only its start is not.
    process = subprocess.Popen(
        [program, "--accept", "-E", "ORT_DISABLE_TELEMETRY=1", "-l", str(path), *DOUBLE, "--fd", "3", "--nice", "0"],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE
    while not listens(path):
        assert time.monotonic() < deadline, "nobody listens"
        time.sleep(0.01)
    yield path
    process.terminate()
    process.wait(PATIENCE)


def test_a_worker_behind_a_socket_serves_like_a_child(activator: Path, bundle: Path) -> None:
    async def run() -> None:
        listener = Listener()
        worker = await WorkerProcess.start(WorkerSettings(socket=activator), bundle, on_event=listener, nice=3)
        worker.admit(hello(1))
        await listener.ended(1)
        assert listener.outcomes[1].reason == "length"
        # The kernel would name systemd: the worker itself says who it is and what it takes.
        assert psutil.Process(worker.pid).cmdline()[-4:] == ["--fd", "3", "--nice", "0"]
        assert worker.usage is not None
        assert worker.usage[0].rss_bytes > 1 << 20
        worker.admit(hello(2, prompt="environment"))
        assert f"nice {min(19, os.nice(0) + 3)}" in await closed(worker)
        await worker.close()

    asyncio.run(run())


def test_a_crash_behind_a_socket_is_noticed(activator: Path, bundle: Path) -> None:
    async def run() -> None:
        worker = await WorkerProcess.start(WorkerSettings(socket=activator), bundle, on_event=Listener())
        worker.admit(hello(1, prompt="crash"))
        assert "edge-agent-worker" in await closed(worker)

    asyncio.run(run())


def test_a_hang_behind_a_socket_is_given_up_on(activator: Path, bundle: Path) -> None:
    async def run() -> None:
        settings = WorkerSettings(socket=activator, stall_seconds=0.5)
        worker = await WorkerProcess.start(settings, bundle, on_event=Listener())
        worker.admit(hello(1, prompt="hang"))
        assert "silent" in await closed(worker)

    asyncio.run(run())


def test_a_socket_that_nobody_listens_on_is_named(tmp_path: Path, bundle: Path) -> None:
    settings = WorkerSettings(socket=tmp_path / "nobody")
    with pytest.raises(EngineFailed, match=r"edge-agent-worker\.socket"):
        asyncio.run(WorkerProcess.start(settings, bundle, on_event=Listener()))
