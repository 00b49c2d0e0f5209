"""The process that is killed: ``python -m tests.chaos.device PORT STATE BUNDLE [BUNDLE…] [--real]``.

It serves the first bundle as ``toy@1.0.0``; every desired document (``overlap`` or ``drain``) swaps to the next one
that way (``toy@2.0.0``, …, and round again). Workers are doubles, or with ``--real`` the product's own.
Ends in order at SIGTERM.
"""

from __future__ import annotations

import argparse
import queue
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from agent.config import AgentConfig
from agent.install.ports import SealedBundle, SwapMode
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from agent.worker.supervisor import WorkerProcess
from contract.errors import EngineFailed
from tests.agent.device import Device, sealed
from tests.agent.worker.double import DOUBLE

NAME = "storm"
QUEUE = 32


def reference(index: int) -> str:
    """What the device calls its ``index``-th bundle."""
    return sealed(version=f"{index + 1}.0.0").manifest.reference


def bundle(directories: list[Path], turn: int) -> SealedBundle:
    """The one that is served after ``turn`` swaps."""
    index = turn % len(directories)
    return sealed(version=f"{index + 1}.0.0", directory=directories[index])


def swap(device: Device, to: SealedBundle, mode: SwapMode) -> bool:
    """Whether it worked; else the old one serves on, if there is one."""
    try:
        report = device.run(device.serving.swap(to, mode))
    except EngineFailed as error:
        print(f"no swap: {error.message}", flush=True)
        return False
    print(f"swapped to {to.manifest.reference}, {report}", flush=True)
    return True


def main(port: int, state: Path, directories: list[Path], *, real: bool) -> None:
    config = AgentConfig(
        device=NAME,
        state_dir=state,
        broker=BrokerSettings(host="127.0.0.1", port=port),
        serving=ServingSettings(
            queue_limit=QUEUE, client_queue_limit=QUEUE, stream_interval_ms=0, stop_seconds=0.5, drain_seconds=5.0
        ),
    )
    double: Any = partial(WorkerProcess.start, command=DOUBLE)
    workers: Any = WorkerProcess.start if real else double
    # Swap, or end at None; a SimpleQueue may be filled from a signal handler.
    wishes: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wishes.put(None))
    device = Device(config, state / "state.db", workers)
    device.on_desired = lambda payload, _retained: wishes.put(payload)
    device.start(connect=False, settle=False)
    # A worker may be killed while it loads: the first one, too.
    if not any(swap(device, bundle(directories, 0), "drain") for _ in range(10)):
        sys.exit("the first bundle does not load")
    device.call(device.serving.startup_finished)
    turn = 0
    while (wish := wishes.get()) is not None:
        turn += 1
        swap(device, bundle(directories, turn), "drain" if wish == b"drain" else "overlap")
    device.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("state", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--real", action="store_true")
    arguments = parser.parse_args()
    main(arguments.port, arguments.state, arguments.bundles, real=arguments.real)
