"""Measures the way of a request over a real mosquitto against the engine's own loop, and prints ratios.

    python benchmarks/serving.py BUNDLE [--rounds N] [--seconds S] [--json]

Both sides run the same model in the same worker process with the same threads; one is driven through its socket alone,
the other by a program that publishes to the broker, through agent, ledger and back. Rounds alternate; medians count.
Every prompt begins with another number, so that no side profits from what it has read before.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agent.config import AgentConfig
from agent.engine.interface import FinishEvent, Generation, StepEvent
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from agent.state.database import Database
from agent.state.result_store import Key
from agent.state.result_writer import ResultWriter
from agent.state.schema import SCHEMA
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess
from tests.agent.device import Device, sealed
from tests.broker import Broker
from tests.e2e.raw_client import Answer, RawClient

STREAMS = (1, 8)
TOKENS = 128
STORED = 4000
IDLE_SECONDS = 10.0
LOAD_SECONDS = 120.0
NUMBERS = itertools.count(1000)


def prompt() -> str:
    return f"{next(NUMBERS)} ships are at sea. Write about them and the wind."


class Alone:
    """The worker without anything around it."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._left = 0

    async def open(self, bundle: Path) -> None:
        self._worker = await WorkerProcess.start(WorkerSettings(), bundle, on_event=self._hear)

    def _hear(self, event: StepEvent) -> None:
        if isinstance(event, FinishEvent):
            self._left -= 1
            if not self._left:
                self._over.set()

    async def measure(self, streams: int) -> float:
        """Tokens per second of all streams together."""
        self._left = streams
        self._over.clear()
        started = time.perf_counter()
        for number in range(streams):
            self._worker.admit(
                Generation(next(NUMBERS), f"c{number}", prompt=prompt(), max_tokens=TOKENS, min_tokens=TOKENS)
            )
        await self._over.wait()
        return streams * TOKENS / (time.perf_counter() - started)

    async def close(self) -> None:
        await self._worker.close()


def serve(port: int, root: Path, bundle: Path) -> None:
    """The agent's serving half, in this process, until SIGTERM."""
    config = AgentConfig(
        device="bench",
        state_dir=root,
        broker=BrokerSettings(host="127.0.0.1", port=port),
        serving=ServingSettings(stream_interval_ms=50, stop_seconds=0),
    )
    workers: Any = WorkerProcess.start
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    device = Device(config, root / "state.db", workers)
    device.start(settle=False)
    device.run(device.serving.swap(sealed(directory=bundle), "drain"), LOAD_SECONDS)
    device.call(device.serving.startup_finished)
    stopped.wait()
    device.stop()


class Site:
    """A broker, an agent in a process of its own, and a client in this one."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.broker = Broker(root / "broker")
        self.broker.start()
        self.agent = subprocess.Popen(
            [sys.executable, __file__, str(bundle), "--serve", str(self.broker.port), "--root", str(root)]
        )
        self.client = RawClient(self.broker.port, "bench", "bench")
        self._asked = 0
        self.cpu = {streams: Counter[str]() for streams in STREAMS}
        # Before it has subscribed, the broker keeps nothing for it.
        while not self.client.next_device_message("health", LOAD_SECONDS)["ready"]:
            pass

    def measure(self, streams: int) -> float:
        """Tokens per second of all streams as the client sees them, from the first publish to the last frame."""
        names = [f"b{self._asked + number}" for number in range(streams)]
        self._asked += streams
        before = self._used()
        started = time.perf_counter()
        for name in names:
            body = {"id": name, "prompt": prompt(), "max_tokens": TOKENS, "min_tokens": TOKENS}
            self.client.answers[name] = Answer(started)
            self.client.publish("edge/v1/d/bench/generate/bench", json.dumps(body).encode())
        self.client.wait_until_fewer(1, 600)
        rate = streams * TOKENS / (time.perf_counter() - started)
        self.cpu[streams] += self._used() - before
        self.cpu[streams]["tokens"] += streams * TOKENS
        return rate

    def _used(self) -> Counter[str]:
        """CPU seconds of everybody until now."""
        agent = psutil.Process(self.agent.pid)
        return Counter(
            worker=sum(_seconds(child) for child in agent.children()),
            agent=_seconds(agent),
            broker=_seconds(psutil.Process(self.broker.pid)),
            client=_seconds(psutil.Process()),
        )

    def close(self) -> None:
        self.client.close()
        self.agent.terminate()
        self.agent.wait(30)
        self.broker.stop()


def _seconds(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


async def measure_store(root: Path) -> float:
    """Requests that were accepted and answered, both durably, in a second."""
    database = Database(root / "store.db", SCHEMA)
    ledger = ResultWriter(database)
    request, last = b"x" * 300, b"y" * 700

    async def one(number: int) -> None:
        key = Key("c", str(number))
        await ledger.accept(key, "f", request, deadline_at=None, correlation=None, may_insert=True)
        await ledger.answered(key, last)
        ledger.delivered(key)

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(STORED)))
    rate = STORED / (time.perf_counter() - started)
    await ledger.close()
    database.close()
    return rate


def measure_idle(pid: int) -> float:
    """Share of one core that the agent and its worker use with nothing to do."""
    own = psutil.Process(pid)
    all_of_us = [own, *own.children(recursive=True)]

    before = sum(map(_seconds, all_of_us))
    time.sleep(IDLE_SECONDS)
    return (sum(map(_seconds, all_of_us)) - before) / IDLE_SECONDS


def main() -> int:
    parser = argparse.ArgumentParser(description="end to end over mosquitto against the engine's own loop")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no round after so long")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.root, arguments.bundle)
        return 0
    alone: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    whole: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    with tempfile.TemporaryDirectory() as scratch, asyncio.Runner() as runner:
        root = Path(scratch)
        stored = runner.run(measure_store(root))
        worker = Alone()
        runner.run(worker.open(arguments.bundle))
        site = Site(root, arguments.bundle)
        try:
            runner.run(worker.measure(1))
            site.measure(1)
            until = time.monotonic() + arguments.seconds
            for turn in range(arguments.rounds):
                if turn and time.monotonic() > until:
                    break
                for streams in STREAMS:
                    # Neither side always has the warmer processor.
                    for side in (0, 1) if turn % 2 else (1, 0):
                        if side:
                            whole[streams].append(site.measure(streams))
                        else:
                            alone[streams].append(runner.run(worker.measure(streams)))
                    print(f"round {turn + 1}: {streams}: {alone[streams][-1]:.1f}, {whole[streams][-1]:.1f} tok/s",
                          file=sys.stderr, flush=True)  # fmt: skip
            idle = measure_idle(site.agent.pid)
        finally:
            site.close()
            runner.run(worker.close())
    found: dict[str, Any] = {
        "load_average": os.getloadavg()[0],
        "store_requests_per_second": stored,
        "idle_share_of_a_core": idle,
    }
    for streams in STREAMS:
        engine, end = statistics.median(alone[streams]), statistics.median(whole[streams])
        pairs = sorted(one / other for one, other in zip(whole[streams], alone[streams], strict=True))
        found[f"streams_{streams}"] = {
            "engine": engine, "end_to_end": end, "ratio": end / engine, "lowest": pairs[0], "highest": pairs[-1],
            "cpu_seconds_for_1000_tokens": {
                name: 1000 * used / site.cpu[streams]["tokens"]
                for name, used in site.cpu[streams].items() if name != "tokens"
            },
        }  # fmt: skip
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    for streams in STREAMS:
        row = found[f"streams_{streams}"]
        print(
            f"{streams} stream(s): engine {row['engine']:.1f} tok/s, over mosquitto {row['end_to_end']:.1f} tok/s, "
            f"ratio {row['ratio']:.3f} (rounds: {row['lowest']:.3f} to {row['highest']:.3f})"
        )
        cpu = ", ".join(f"{name} {used:.2f}" for name, used in row["cpu_seconds_for_1000_tokens"].items())
        print(f"    CPU seconds for 1,000 tokens: {cpu}")
    print(f"store: {stored:.0f} requests/s accepted and answered, both durably")
    print(f"idle: {idle:.2%} of one core (agent and worker)   load average now: {found['load_average']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
