"""Processes that die by SIGKILL with requests in flight: each request is run again once, or closed with an error that
says so. Agent and broker are real, the worker is its double as a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.engine.interface import FinishEvent, Generation, TokenEvent
from tests.agent.worker.double import ScriptedEngine
from tests.broker import Broker
from tests.chaos.device import NAME
from tests.e2e.raw_client import Answer, RawClient

pytestmark = pytest.mark.broker

TOKENS = 100
LONG = f"hold {TOKENS}"
"""It is in its middle until its worker is gone: the next one holds nobody up."""
TEXT = "".join(f"{number} " for number in range(TOKENS))


class AgentProcess:
    """The agent's serving half, to be killed and started again on the same state."""

    def __init__(self, broker: Broker, root: Path) -> None:
        self.bundle = root / "bundle"
        self._root = root
        self._broker = broker
        self._process: subprocess.Popen[bytes] | None = None
        self._hold = root / "hold"
        self._hold.touch()

    def start(self) -> None:
        with (self._root / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.device",
                 str(self._broker.port), str(self._root), str(self.bundle)],
                stdout=log, stderr=log, env={**os.environ, "EDGE_HOLD": str(self._hold)},
            )  # fmt: skip

    def hold_no_more(self) -> None:
        """Workers that are loaded from now on let every answer go."""
        self._hold.unlink()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(120)

    def kill_worker(self) -> None:
        assert self._process is not None
        (worker,) = psutil.Process(self._process.pid).children()
        worker.kill()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    broker = Broker(tmp_path / "broker")
    broker.start()
    made = AgentProcess(broker, tmp_path)
    made.start()
    yield made
    made.kill()
    broker.stop()


@pytest.fixture
def asker(agent: AgentProcess) -> Iterator[RawClient]:
    client = RawClient(agent._broker.port, "asker", NAME)
    while not client.next_device_message("health")["ready"]:
        pass
    yield client
    client.close()


def ask(client: RawClient, request: str, prompt: str, **more: Any) -> None:
    client.answers[request] = Answer(0.0)
    body = {"id": request, "prompt": prompt, "max_tokens": TOKENS, **more}
    client.publish(f"edge/v1/d/{NAME}/generate/{client.name}", json.dumps(body).encode())


def wait_for_text(client: RawClient, request: str) -> None:
    while True:
        found, frame = client.next_frame()
        if found == request and frame.get("d"):
            return


def expected(prompt: str) -> str:
    """What the engine says when nothing happens to it."""
    engine = ScriptedEngine()
    engine.admit(Generation(1, "asker", prompt=prompt, max_tokens=TOKENS))
    text = ""
    while engine.busy:
        text += "".join(event.text for event in engine.step() if isinstance(event, TokenEvent | FinishEvent))
    return text


def test_killed_worker_runs_what_was_silent_again_and_closes_what_had_begun(
    agent: AgentProcess, asker: RawClient
) -> None:
    ask(asker, "silent", LONG, stream=False)
    ask(asker, "streamed", LONG)
    # The one that was asked before it runs, too.
    wait_for_text(asker, "streamed")
    agent.hold_no_more()
    agent.kill_worker()
    (last,) = asker.wait_answer("silent").lasts
    assert (last["text"], last["attempt"]) == (TEXT, 2)
    (closed,) = asker.wait_answer("streamed").lasts
    assert (closed["error"]["code"], closed["error"]["type"], closed["attempt"]) == (503, "interrupted", 1)
    assert "killed by SIGKILL" in closed["error"]["message"]
    assert "another id" in closed["error"]["message"]
    ask(asker, "streamed", LONG)
    assert asker.wait_answer("streamed").lasts == [closed]


def test_request_that_kills_two_workers_is_closed_and_its_neighbours_are_answered(
    agent: AgentProcess, asker: RawClient
) -> None:
    ask(asker, "poison", "crash")
    ask(asker, "next", "count 5")
    error = asker.wait_answer("poison").lasts[0]["error"]
    assert (error["code"], error["type"]) == (500, "engine_failed")
    assert "ended twice" in error["message"]
    assert asker.wait_answer("next").text == expected("count 5")
    ask(asker, "poison", "crash")
    assert asker.wait_answer("poison").lasts == [{"s": 0, "error": error, "attempt": 2}], "it is not run a third time"


def test_killed_agent_runs_what_was_silent_and_closes_what_had_begun(agent: AgentProcess, asker: RawClient) -> None:
    ask(asker, "silent", LONG, stream=False)
    ask(asker, "streamed", LONG)
    # The one that was asked before it runs, too.
    wait_for_text(asker, "streamed")
    agent.hold_no_more()
    agent.kill()
    agent.start()
    error = asker.wait_answer("streamed").lasts[0]
    assert (error["error"]["code"], error["error"]["type"], error["attempt"]) == (503, "interrupted", 2)
    assert "another id" in error["error"]["message"]
    last = asker.wait_answer("silent").lasts[0]
    assert (last["text"], last["attempt"]) == (TEXT, 2)
    ask(asker, "streamed", LONG)
    assert asker.wait_answer("streamed").lasts == [error]
