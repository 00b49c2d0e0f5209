"""Stopping while the model loads: what was accepted waits for the next start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.install.market import Device, Market
from tests.broker import Broker
from tests.e2e.raw_client import RawClient

pytestmark = pytest.mark.broker

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


class SlowAgent:
    """A real process; its workers load for as long as ``stall`` is there."""

    def __init__(self, directory: Path, port: int, state: Path) -> None:
        self.stall = directory / "stall"
        self.loading = directory / "stall.loading"
        self._config = directory / "agent.toml"
        self._config.write_text(f'device = "box"\nstate_dir = "{state}"\n[broker]\nhost = "127.0.0.1"\nport = {port}\n')
        self._log = (directory / "agent.log").open("w")

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.agent.slow_agent", str(self._config)]
        environment = {**os.environ, "EDGE_STALL": str(self.stall)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=self._log)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.01)


def test_requests_that_wait_for_a_model_that_loads_outlive_a_stop(
    market: Market, device: Device, broker: Broker, tmp_path: Path
) -> None:
    market.publish("1.0.0")
    device.activate(device.install(market.job(device.directory.root, "1.0.0")))
    agent = SlowAgent(tmp_path, broker.port, device.directory.root)
    client = RawClient(broker.port, "me", "box")
    agent.stall.touch()
    first = agent.start()
    try:
        client.next_device_message("status")
        for number in range(3):
            client.ask(f"q{number}", "count 9", max_tokens=3)
        # Accepted: it says how many wait.
        for number in range(3):
            assert client.next_frame()[1]["d"] == "", number
        wait_for(agent.loading)
        first.terminate()
        assert first.wait(120) == 0
        assert client.unanswered() == ["q0", "q1", "q2"], "nothing was turned away"
        agent.stall.unlink()
        second = agent.start()
        try:
            answers = [client.wait_answer(f"q{number}") for number in range(3)]
            # One more, so that whatever would come twice has come by then.
            client.ask("last", "count 9", max_tokens=3)
            client.wait_answer("last")
            assert [len(answer.lasts) for answer in answers] == [1, 1, 1]
            assert all(answer.lasts[0]["finish_reason"] == "length" for answer in answers)
        finally:
            second.kill()
            second.wait()
    finally:
        first.kill()
        first.wait()
        client.close()
