"""``deploy --wait`` on a real broker: it goes on waiting while a device tries again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.mqtt import messages
from contract.mqtt.messages import BundleState, Phase, Reported, ReportedError
from contract.mqtt.topics import Topics
from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import BrokerSession
from tests.broker import Broker

pytestmark = pytest.mark.broker
TOPICS = Topics("kitchen-1")
UNREACHABLE = ReportedError("source_unavailable", "depot is away; retrying in 5 s", retry_in_seconds=5.0)
ACTIVE = BundleState(name="tiny", version="1.0.0", digest="0" * 64, security_epoch=0)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


def device_that_reports(broker: Broker, *course: tuple[Phase, BundleState | None, ReportedError | None]) -> None:
    """Answer the next desired document with ``course``."""
    session = BrokerSession(BrokerAddress("127.0.0.1", broker.port), "device")
    session.subscribe(TOPICS.desired)

    def run() -> None:
        with session:
            for message in session.messages(30.0):
                revision = json.loads(message.payload)["revision"]
                for phase, active, error in course:
                    reported = Reported(revision, phase, None, active, None, error)
                    session.publish(TOPICS.reported, messages.encode(reported), retain=True)
                return

    threading.Thread(target=run, daemon=True).start()


def deploy(broker: Broker, timeout: int) -> subprocess.CompletedProcess[str]:
    where = ["--broker", f"mqtt://127.0.0.1:{broker.port}", "--device", "kitchen-1"]
    command = [sys.executable, "-m", "packager.cli", "deploy", *where, "tiny@1.0.0", "--wait"]
    return subprocess.run(
        [*command, "--timeout", str(timeout)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_device_that_tries_again_is_waited_for(broker: Broker) -> None:
    device_that_reports(broker, ("RESOLVE", None, None), ("IDLE", None, UNREACHABLE), ("IDLE", ACTIVE, None))
    done = deploy(broker, 30)
    assert done.returncode == 0, done.stderr
    assert "kitchen-1: waiting: depot is away; retrying in 5 s [source_unavailable]" in done.stdout


def test_what_it_still_waits_for_is_said_in_the_end(broker: Broker) -> None:
    device_that_reports(broker, ("IDLE", None, UNREACHABLE))
    done = deploy(broker, 2)
    assert done.returncode == 4
    assert "kitchen-1; kitchen-1: depot is away" in done.stderr
