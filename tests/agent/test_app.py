"""The agent as a process: starts without a broker, says what it is, ends in order."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.e2e.raw_client import RawClient


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    yield made
    made.stop()


def start_agent(tmp_path: Path, port: int) -> subprocess.Popen[str]:
    config = tmp_path / "agent.toml"
    config.write_text(
        f'device = "box"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {port}\n'
        "[telemetry]\ninterval_seconds = 0.2\n"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "run", "--config", str(config)], stderr=subprocess.PIPE, text=True
    )


@pytest.mark.broker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_agent_without_a_model_lives_and_ends_in_order(tmp_path: Path, broker: Broker, number: signal.Signals) -> None:
    # The agent is there before the broker is.
    process = start_agent(tmp_path, broker.port)
    try:
        broker.start()
        client = RawClient(broker.port, "me", "box")
        assert client.next_device_message("status")["online"] is True
        health = client.next_device_message("health")
        if health["reasons"] == ["loading"]:
            health = client.next_device_message("health")
        assert health == {"ready": False, "reasons": ["no_model"], "queue": 0, "active": 0}
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700, "prompts and answers lie in it"
        sample = client.next_device_message("telemetry/system")
        (own,) = sample["processes"]
        assert own["pid"] == process.pid
        assert own["pss"] <= 45 << 20
        client.ask("early", "hello")
        assert client.wait_answer("early").lasts[0]["error"]["type"] == "no_model"
        process.send_signal(number)
        assert process.wait(120) == 0
        assert client.next_device_message("status")["online"] is False
        client.close()
    finally:
        process.kill()
        _, log = process.communicate()
    said = re.findall(r'level=(\w+) component=\w+ msg="?([^"=]*?)"?(?: \w+=|\n)', log)
    assert said[:2] == [("info", "device box starts"), ("warning", said[1][1])]
    assert "no root of trust is provisioned" in said[1][1]
    connected = [number for number, (_, text) in enumerate(said) if text.startswith("connected to the broker")]
    assert len(connected) == 1, "once, not for each attempt"
    assert said[-1] == ("info", "stopping")
    assert [line for line in said[connected[0] :] if line[0] != "info"] == [], "nothing is wrong with being stopped"


def test_two_agents_do_not_share_a_state_directory(tmp_path: Path, broker: Broker) -> None:
    first = start_agent(tmp_path, broker.port)
    try:
        # It holds the lock by its first line.
        assert first.stderr is not None
        assert "device box starts" in first.stderr.readline()
        second = start_agent(tmp_path, broker.port)
        _, words = second.communicate(timeout=120)
        assert second.returncode == 5
        assert "state_locked" in words
        assert "Traceback" not in words
    finally:
        first.kill()
        first.communicate()


@pytest.mark.broker
def test_deploy_reaches_the_device_and_tells_a_refusal(tmp_path: Path, broker: Broker) -> None:
    broker.start()
    process = start_agent(tmp_path, broker.port)
    try:
        # A device that was never seen is not deployed to.
        client = RawClient(broker.port, "waits", "box")
        assert client.next_device_message("status")["online"] is True
        client.close()
        done = subprocess.run(
            [sys.executable, "-m", "packager.cli", "deploy", "--broker", broker.url, "--device", "box",
             "--source", "nowhere", "--wait", "--timeout", "60", "--json", "toy@1.0.0"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 3
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines[0]["bundle"] == "toy@1.0.0"
        assert lines[-1]["error"]["reason"] == "source_not_configured"
        assert done.stderr.count("\n") == 1
    finally:
        process.kill()
        process.communicate()


def test_broker_that_is_not_there_is_said_in_one_sentence(broker: Broker) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "packager.cli", "prompt", "hi", "--device", "box", "--broker", broker.url],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
