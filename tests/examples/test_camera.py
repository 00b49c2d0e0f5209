"""The example of a camera, run as a reader would: a real broker, and a device with a model that sees."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.agent.device import Device
from tests.agent.serving.test_real_model import serve
from tests.agent.waiting import until
from tests.broker import Broker, free_port
from tests.seeing import png

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300.0
STATES = {"full", "half empty", "empty", "not to be seen"}

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = Broker(tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def device(broker: Broker, seeing_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    found = serve(broker, tmp_path_factory.mktemp("camera"), seeing_bundle, "shelf", threads=2, stall_seconds=SECONDS)
    yield found
    found.stop()


@pytest.fixture
def still(tmp_path: Path) -> Path:
    path = tmp_path / "still.png"
    path.write_bytes(png(9, 9, 200))
    return path


def camera(
    broker: Broker, device: Device, *arguments: str, status: int = 0, **environment: str
) -> tuple[list[str], list[str]]:
    """What the example says on its two outputs."""
    where = {"EDGE_BROKER": f"mqtt://127.0.0.1:{broker.port}", "EDGE_DEVICE": device.config.device}
    ended = subprocess.run(
        [sys.executable, "examples/python/camera.py", "--every", "0", *arguments],
        env={**os.environ, **where, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout.splitlines(), ended.stderr.splitlines()


def accepted(device: Device) -> int:
    """How many requests the device has taken."""
    return int(device.database.query("SELECT count(*) AS taken FROM answers")[0]["taken"])


def test_it_prints_what_it_sees_by_its_schema(broker: Broker, device: Device, still: Path) -> None:
    (line,), said = camera(broker, device, "--count", "1", "--detail", "low", "--", "cat", str(still))
    seen = json.loads(line)
    assert list(seen) == ["taken", "state", "person_in_front"]
    assert seen["state"] in STATES
    assert isinstance(seen["person_in_front"], bool)
    assert said == []


def test_the_newest_still_takes_the_place_of_those_that_wait(broker: Broker, device: Device, still: Path) -> None:
    replica = device.serving.replica
    assert replica is not None and replica.worker is not None
    before = accepted(device)
    # It stands still until the device has all four.
    os.kill(replica.worker.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as thread:
            looking = thread.submit(camera, broker, device, "--count", "4", "--every", "0.3", "--still", str(still))
            asyncio.run(until(lambda: accepted(device) == before + 4 or looking.done()))
            os.kill(replica.worker.pid, signal.SIGCONT)
            answered, said = looking.result()
    finally:
        os.kill(replica.worker.pid, signal.SIGCONT)
    assert len(answered) + len(said) == 4
    assert said, "every still was answered"
    assert all(line.endswith("no answer: the answer was cancelled before it was a whole Shelf") for line in said)
    assert json.loads(answered[-1])["taken"] > max(line.split()[0] for line in said)


def test_no_still_is_a_sentence_and_the_next_one_is_looked_at(
    broker: Broker, device: Device, still: Path, tmp_path: Path
) -> None:
    taking = tmp_path / "take"
    taking.write_text(f"#!/bin/sh\n[ -e {tmp_path}/again ] && exec cat {still}\ntouch {tmp_path}/again\nexit 3\n")
    taking.chmod(0o755)
    answered, said = camera(broker, device, "--count", "2", "--", str(taking))
    assert len(answered) == 1
    assert [line.partition(" ")[2] for line in said] == [f"no still: {taking} ended with 3"]
    answered, said = camera(broker, device, "--count", "1", "--still", str(tmp_path / "none.jpg"))
    assert (answered, len(said)) == ([], 1)
    assert "no still: [Errno 2] No such file or directory" in said[0]
    still.write_bytes(b"GIF89a")
    answered, said = camera(broker, device, "--count", "1", "--still", str(still))
    assert (answered, len(said)) == ([], 1)
    assert said[0].endswith("no answer: the device refuses the request: the picture is no image/jpeg")


def test_it_says_how_it_is_called_and_that_no_broker_is_there(broker: Broker, device: Device, still: Path) -> None:
    _, said = camera(broker, device, status=2)
    assert said[-1].endswith("give either --still FILE or, after --, a command that writes a picture")
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    _, said = camera(broker, device, "--still", str(still), status=1, EDGE_BROKER=nowhere)
    assert said[-1].startswith("not now: ")
