"""A device that is started while its disk takes not one byte: a real agent, real broker, real model, real commands.

The limit of the operating system on the size of files stands in for the disk, since it needs no root: every write
fails, and SQLite cannot make the files that it needs even to read. Real full disks:
``tests/systemd/test_disk_faults.py``.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.state import result_store
from agent.state.layout import StateDirectory
from agent.state.opening import State
from agent.state.result_store import Key
from contract.mqtt.reading import parse_request, request_fingerprint
from tests.agent.install.market import Market
from tests.broker import Broker
from tests.e2e.raw_client import Answer, RawClient
from tests.tiny import ANSWERS

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

QUESTION = "What is the capital of France?"
CONFIG = """
device = "box"
state_dir = "state"
[broker]
host = "127.0.0.1"
port = {port}
[sources]
depot = "{depot}"
[install]
probation_seconds = 0.5
retry_first_seconds = 0.2
[worker]
threads = 1
"""


def limit_files(full: bool) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class FullDevice:
    """``run`` starts a command without the limit, :meth:`start` the agent with it, :meth:`make_room` takes it away."""

    def __init__(self, root: Path, market: Market, broker: Broker) -> None:
        self.root, self.market = root, market
        self.config = root / "agent.toml"
        self.config.write_text(CONFIG.format(port=broker.port, depot=market.location))
        self.log: list[str] = []
        self.agent: subprocess.Popen[str] | None = None

    def run(self, *words: str, full: bool = False) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent.cli", *words, "--config", str(self.config)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=partial(limit_files, full),
        )  # fmt: skip

    def start(self, *, full: bool) -> None:
        command = [sys.executable, "-m", "agent.cli", "run", "--config", str(self.config)]
        self.agent = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, preexec_fn=partial(limit_files, full),  # noqa: PLW1509
        )  # fmt: skip
        threading.Thread(target=self._read, args=[self.agent], daemon=True).start()

    def _read(self, agent: subprocess.Popen[str]) -> None:
        assert agent.stderr is not None
        self.log.extend(agent.stderr)

    def make_room(self) -> None:
        assert self.agent is not None
        resource.prlimit(self.agent.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.agent is not None
        self.agent.send_signal(number)
        return self.agent.wait(120)


@pytest.fixture
def device(tmp_path: Path, tiny_bundle: Path) -> Iterator[FullDevice]:
    broker = Broker(tmp_path / "broker")
    broker.start()
    made = FullDevice(tmp_path, Market(tmp_path / "market", tiny_bundle), broker)
    made.market.publish("1.0.0")
    root = str(made.market.root_json)
    assert made.run("install", made.market.location, "tiny@1.0.0", "--root", root).returncode == 0
    yield made
    if made.agent is not None:
        made.agent.kill()
        made.agent.wait()
    broker.stop()


@pytest.fixture
def client(device: FullDevice) -> Iterator[RawClient]:
    port = int(device.config.read_text().partition("port = ")[2].split()[0])
    made = RawClient(port, "me", "box")
    yield made
    made.close()


def until(client: RawClient, kind: str, **wanted: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found: dict[str, Any] = client.next_device_message(kind)
        if wanted.items() <= found.items():
            return found
    raise TimeoutError(f"no {kind} with {wanted}")


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def doctor(device: FullDevice) -> dict[str, list[dict[str, Any]]]:
    """What it finds while it can write no more than the agent, by verdict."""
    done = device.run("doctor", "--json", full=True)
    assert done.stderr == ""
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["verdict"], []).append(finding)
    return found


def test_what_is_active_serves_says_why_and_recovers_without_a_restart(device: FullDevice, client: RawClient) -> None:
    # Killed, so that what was committed last is in the log beside the database.
    device.start(full=False)
    until(client, "health", ready=True)
    client.ask("before", QUESTION, max_tokens=40)
    assert client.wait_answer("before").text == ANSWERS[QUESTION]
    device.end(signal.SIGKILL)

    device.start(full=True)
    until(client, "status", online=True)
    health = until(client, "health", ready=True)
    assert health["reasons"] == ["store_read_only"]
    assert health["warnings"] == ["store_broken"]
    client.ask("q", QUESTION, max_tokens=40)
    first = client.wait_answer("q")
    assert (first.text, first.bundle) == (ANSWERS[QUESTION], "tiny@1.0.0")
    body = json.dumps({"id": "q", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40}).encode()
    client.publish("edge/v1/d/box/generate/me", body)
    wait(lambda: len(client.answers["q"].lasts) == 2)
    client.ask("before", QUESTION, max_tokens=40)
    client.wait_answer("before")
    assert client.answers["q"].lasts[0] == client.answers["q"].lasts[-1], "kept as long as it runs"

    device.market.publish("1.1.0", {"README.md": b"1.1.0"})
    desired = {"revision": "r1", "bundle": {"name": "tiny", "version": "1.1.0"}}
    client.publish("edge/v1/d/box/desired", json.dumps(desired).encode(), retain=True)
    while True:
        reported = client.next_device_message("reported")
        if reported["error"] is not None:
            break
    assert reported["error"]["reason"] == "store_broken"
    assert reported["active"]["version"] == "1.0.0"
    assert "results are kept in memory only" in reported["warnings"][0]["message"]
    refused = device.run("install", device.market.location, "tiny@1.1.0")
    assert (refused.returncode, "store_broken" in refused.stderr) == (5, True)
    assert refused.stderr.count("\n") == 1
    status = device.run("status", full=True)
    assert "tiny@1.0.0  active" in status.stdout
    assert "health    ready: store_read_only" in status.stdout
    found = doctor(device)
    assert [each["check"] for each in found["bad"]] == ["state"], found["bad"]
    assert "disk I/O error" in found["bad"][0]["detail"]
    assert {each["check"] for each in found["warning"]} == {"ready", "installation"}
    assert not any("--replace" in each["fix"] for verdict in found.values() for each in verdict)

    device.make_room()
    until(client, "health", ready=True, reasons=[])
    while client.next_device_message("reported")["active"]["version"] != "1.1.0":
        pass
    assert device.end() == 0
    assert not [line for line in device.log if "Traceback" in line or "traceback=" in line]

    device.start(full=False)
    until(client, "status", online=True)
    until(client, "health", ready=True)
    client.ask("q", QUESTION, max_tokens=40)
    assert client.wait_answer("q").lasts[0] == first.lasts[0], "stored once there was room: bundle 1.0.0 said it"
    assert device.run("doctor").returncode == 0


def test_what_was_accepted_before_waits_for_room_and_is_answered_once(device: FullDevice, client: RawClient) -> None:
    device.start(full=False)
    until(client, "health", ready=True)
    device.end()
    # As a power cut leaves it: accepted, acknowledged, not answered.
    body = json.dumps({"id": "left", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40}).encode()
    state = State(StateDirectory(device.root / "state"))
    with state.answering.transaction("answers") as connection:
        result_store.accept(
            connection, Key("me", "left"), request_fingerprint(parse_request(body)[1]), body, now=time.time()
        )
    state.close()
    client.answers["left"] = Answer(time.monotonic())

    device.start(full=True)
    until(client, "status", online=True)
    until(client, "health", ready=True, reasons=["store_read_only"])
    client.ask("new", QUESTION, max_tokens=40)
    client.wait_answer("new")
    assert client.unanswered() == ["left"], "it was promised one result, also over the next start"
    device.make_room()
    answer = client.wait_answer("left")
    assert (answer.text, answer.lasts[0]["attempt"]) == (ANSWERS[QUESTION], 2)
    assert device.end() == 0


def test_doctor_names_the_disk_once_where_no_agent_runs_either(device: FullDevice) -> None:
    found = doctor(device)
    assert [each["check"] for each in found["bad"]] == ["state", "ready"]
    assert "nothing is answered" in found["bad"][1]["detail"]
