"""The process that is killed: ``python -m tests.chaos.device PORT STATE BUNDLE``; ends in order at SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from agent.broker_settings import BrokerSettings
from agent.config import AgentConfig
from agent.serving.settings import ServingSettings
from agent.worker.supervision import WorkerProcess
from tests.agent.device import Device, sealed

NAME = "storm"
QUEUE = 32
WORKER = Path(__file__).resolve().parent.parent / "agent" / "worker" / "stand_in_worker.py"


def main(port: int, state: Path, bundle: Path) -> None:
    config = AgentConfig(
        device=NAME,
        state_dir=state,
        broker=BrokerSettings(host="127.0.0.1", port=port),
        serving=ServingSettings(
            queue_limit=QUEUE, client_queue_limit=QUEUE, stream_interval_ms=0, stop_seconds=0.5, drain_seconds=5.0
        ),
    )
    workers: Any = partial(WorkerProcess.start, command=(sys.executable, str(WORKER)))
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    device = Device(config, state / "state.db", workers)
    device.start(msgspec.structs.replace(sealed(), directory=bundle), connect=False)
    stopped.wait()
    device.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
