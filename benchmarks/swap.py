"""Hot swap under load: a whole agent, a real mosquitto, a real model, eight clients that stream without pause.

    python -m benchmarks.swap BUNDLE [--rounds N] [--clients N] [--baseline SECONDS]

Every round publishes another version (the weights differ), lets the device install it while the clients go on, and
holds the gaps between the tokens of one answer, from the wish to the end of probation, against those of a stretch
without a swap just before. First overlapping, then draining, then where memory is said to have no room for two models
("aside": the serving one ends before the canary). Exit status 1 when an answer was lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.watching import within
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.mqtt.pictures import picture_url
from tests.agent.install.market import Market
from tests.broker import Broker

WEIGHTS = "model.onnx.data"
DEADLINE_MS = 300_000
LONG_DEADLINE_MS = 3_600_000
"""A picture may be 2,500 tokens, a long prompt 4,000, which a small device reads for minutes."""

SETTINGS = """
device = "bench"
state_dir = "{root}/state"
[broker]
host = "127.0.0.1"
port = {port}
[sources]
here = "{source}"
[install]
{swap}
probation_seconds = 5.0
canary_seconds = 3600.0
swaps_per_hour = 0
[serving]
stream_interval_ms = 0
[telemetry]
interval_seconds = 5
"""
SWAP = {
    "overlap": 'swap = "overlap"',
    "drain": 'swap = "drain"',
    "aside": f"reserve_bytes = {2**50}",
}
WAIT_SECONDS = 240.0


@dataclass
class Stream:
    """One answer as a client sees it: when each piece came, and how often it ended."""

    asked: float
    times: list[float] = field(default_factory=list)
    lasts: list[dict[str, Any]] = field(default_factory=list)


class Crowd:
    """Clients that ask again as soon as they are answered, over one connection so that they cost little."""

    def __init__(self, port: int, clients: int, tokens: int) -> None:
        self._tokens = tokens
        self.streams: dict[str, Stream] = {}
        self.phases: list[tuple[float, str]] = []
        self.reported: dict[str, Any] = {}
        self.swaps: list[dict[str, Any]] = []
        self.plans: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.asking = False
        self._clients = clients
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="crowd", protocol=mqtt.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not self._ready.wait(20):
            raise TimeoutError("the broker did not answer")

    @staticmethod
    def _on_connect(client: mqtt.Client, *_: Any) -> None:
        device = "edge/v1/d/bench"
        client.subscribe([("edge/v1/c/+/r/+/+", 1), (f"{device}/reported", 1), (f"{device}/event/+", 1)])

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        now = time.perf_counter()
        body = json.loads(message.payload)
        *_, kind, last = message.topic.split("/")
        with self._changed:
            if last == "reported":
                self.reported = body
                if body.get("swap") and body["swap"] not in self.plans:
                    self.plans.append(body["swap"])
                if not self.phases or self.phases[-1][1] != body["phase"]:
                    self.phases.append((now, body["phase"]))
            elif kind == "event":
                if last == "swap":
                    self.swaps.append(body["detail"])
                elif last in ("rollback", "refused"):
                    self.failures.append(f"{last}: {body['detail']}")
            elif last in self.streams:
                self._take(last, body, now)
            self._changed.notify_all()

    def _take(self, name: str, body: dict[str, Any], now: float) -> None:
        stream = self.streams[name]
        if "finish_reason" not in body and "error" not in body:
            if body.get("d"):
                stream.times.append(now)
            return
        stream.lasts.append(body)
        if self.asking and len(stream.lasts) == 1:
            self._ask(int(name.partition(".")[0]))

    def _ask(self, client: int) -> None:
        name = f"{client}.{len(self.streams)}"
        self.streams[name] = Stream(time.perf_counter())
        body = {
            "id": name,
            "prompt": f"{len(self.streams)} ships are at sea. Write about them and the wind.",
            "max_tokens": self._tokens,
            "min_tokens": self._tokens,
            "temperature": 0,
            "deadline_ms": DEADLINE_MS,
        }
        self._client.publish(f"edge/v1/d/bench/generate/crowd{client}", json.dumps(body).encode(), qos=1)

    def show(self, name: str, picture: bytes, question: str, tokens: int) -> Stream:
        """One question about a picture; the answer, once it has ended."""
        parts = [
            {"type": "image_url", "image_url": {"url": picture_url(picture)}},
            {"type": "text", "text": question},
        ]
        return self._ask_all({name: {"messages": [{"role": "user", "content": parts}]}}, tokens)[0]

    def ask_together(self, prompts: dict[str, str], tokens: int) -> list[Stream]:
        """Prompts by request id, all at once; the answers, once all have ended."""
        return self._ask_all({name: {"prompt": prompt} for name, prompt in prompts.items()}, tokens)

    def _ask_all(self, bodies: dict[str, dict[str, Any]], tokens: int) -> list[Stream]:
        same = {"max_tokens": tokens, "min_tokens": tokens, "temperature": 0, "deadline_ms": LONG_DEADLINE_MS}
        streams = {name: Stream(time.perf_counter()) for name in bodies}
        with self._changed:
            self.streams.update(streams)
        for name, body in bodies.items():
            whole = json.dumps({"id": name, **body, **same}).encode()
            self._client.publish("edge/v1/d/bench/generate/crowd0", whole, qos=1)
        self.wait(lambda: all(stream.lasts for stream in streams.values()), "answers to long prompts")
        return list(streams.values())

    def begin(self) -> None:
        with self._changed:
            self.asking = True
            for client in range(self._clients):
                self._ask(client)

    def end(self) -> None:
        """Ask no more, and wait for what is under way.

        Raises:
            TimeoutError: an answer did not come.
        """
        with self._changed:
            self.asking = False
        self.wait(lambda: all(stream.lasts for stream in self.streams.values()), "the last answers")

    def wait(self, condition: Any, what: str) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: bool(self.failures) or condition(), WAIT_SECONDS)
        if self.failures:
            sys.exit(f"{what}: {self.failures[0]}")
        if not done:
            raise TimeoutError(f"{what}: not within {WAIT_SECONDS:.0f} s; {self.reported}")

    def desire(self, name: str, version: str) -> None:
        wanted = {"revision": version, "bundle": {"name": name, "version": version}}
        self._client.publish("edge/v1/d/bench/desired", json.dumps(wanted).encode(), qos=1, retain=True)

    def runs(self, version: str) -> bool:
        active = self.reported.get("active") or {}
        return self.reported.get("phase") == "IDLE" and active.get("version") == version

    def phase_at(self, moment: float) -> str:
        return next((phase for since, phase in reversed(self.phases) if since <= moment), "IDLE")

    def gaps(self, start: float, end: float) -> list[tuple[float, str]]:
        """(seconds between two pieces of one answer, phase at its end), for those that ended within the stretch."""
        found = []
        with self._changed:
            for stream in self.streams.values():
                for sooner, later in zip(stream.times, stream.times[1:], strict=False):
                    if start <= later <= end:
                        found.append((later - sooner, self.phase_at(later)))
        return found

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def p99(values: list[float]) -> float:
    return sorted(values)[max(0, int(len(values) * 0.99) - 1)]


class Site:
    """A repository, a broker and an agent of its own process, in the cgroup ``group`` if there is one."""

    def __init__(self, root: Path, bundle: Path, mode: str, group: Path | None = None) -> None:
        root.mkdir()
        self.market = Market(root / "market", bundle)
        self.name = parse_manifest((bundle / MANIFEST_FILE).read_bytes()).name
        self.broker = Broker(root / "broker")
        self.broker.start()
        self._root = root
        self._versions = 0
        config = root / "agent.toml"
        config.write_text(
            SETTINGS.format(root=root, port=self.broker.port, source=self.market.location, swap=SWAP[mode])
        )
        agent = [sys.executable, "-m", "agent.cli"]
        subprocess.run(
            [*agent, "trust", "provision", str(self.market.root_json), "--config", str(config)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        self._log = (root / "agent.log").open("wb")
        command = [*within(group), *agent, "run", "--config", str(config)]
        self.agent = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def publish(self) -> str:
        """Another version: one bit of one weight differs, so that a whole file has to be put together anew."""
        version = f"1.{self._versions}.0"
        self._versions += 1
        weights = bytearray((self.market.base / WEIGHTS).read_bytes())
        weights[len(weights) // 2 + self._versions] ^= 1
        self.market.publish(version, {WEIGHTS: bytes(weights)})
        return version

    def close(self) -> None:
        self.agent.terminate()
        self.agent.wait(60)
        self._log.close()
        self.broker.stop()


def measure(root: Path, bundle: Path, mode: str, arguments: argparse.Namespace) -> bool:
    """Print one line for each round of a mode; whether no answer was lost or doubled."""
    site = Site(root / mode, bundle, mode)
    crowd = Crowd(site.broker.port, arguments.clients, arguments.tokens)
    ratios, largest = [], 0.0
    try:
        versions = [site.publish() for _ in range(arguments.rounds + 1)]
        crowd.desire(site.name, versions[0])
        crowd.wait(lambda: crowd.runs(versions[0]), "the first installation")
        crowd.begin()
        crowd.wait(lambda: sum(len(stream.times) for stream in crowd.streams.values()) > 200, "the first tokens")
        for version in versions[1:]:
            before = time.perf_counter()
            time.sleep(arguments.baseline)
            start = time.perf_counter()
            crowd.desire(site.name, version)
            crowd.wait(lambda version=version: crowd.runs(version), version)
            end = time.perf_counter()
            calm = [gap for gap, _ in crowd.gaps(before, start)]
            during = crowd.gaps(start, end)
            worst, phase = max(during)
            ratio = p99([gap for gap, _ in during]) / p99(calm)
            ratios.append(ratio)
            largest = max(largest, worst)
            swap = crowd.swaps[-1]
            print(
                f"{swap['mode']}: token gap p50/p99/largest {_ms(calm)} ms without, "
                f"{_ms([gap for gap, _ in during])} ms with a swap of {end - start:.1f} s (largest in {phase}); "
                f"p99 {ratio:.2f}×; pause {swap['queue_pause_ms']:.0f} ms "
                f"(reported {crowd.reported.get('queue_pause_ms', 0):.0f})",
                flush=True,
            )
            if arguments.phases:
                for name in dict.fromkeys(phase for _, phase in during):
                    print(f"    {name}: {_ms([gap for gap, phase in during if phase == name])} ms")
        crowd.end()
    finally:
        crowd.close()
        site.close()
    ends = [len(stream.lasts) for stream in crowd.streams.values()]
    failed = [last for stream in crowd.streams.values() for last in stream.lasts if "error" in last]
    late = [
        last for stream in crowd.streams.values() for last in stream.lasts if last.get("finish_reason") == "deadline"
    ]
    lost, doubled = ends.count(0), sum(count > 1 for count in ends)
    print(
        f"{mode}: {len(ends)} answers, {lost} lost, {doubled} doubled, {len(failed)} failed, {len(late)} past their "
        f"deadline; p99 ratio, median of {len(ratios)}: {statistics.median(ratios):.2f}×, largest gap "
        f"{largest * 1000:.0f} ms; load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return not (lost or doubled or failed)


def _ms(gaps: list[float]) -> str:
    return f"{statistics.median(gaps) * 1000:.0f}/{p99(gaps) * 1000:.0f}/{max(gaps) * 1000:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=160, help="length of every answer")
    parser.add_argument("--baseline", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument("--mode", choices=tuple(SWAP), action="append")
    parser.add_argument("--phases", action="store_true", help="gaps by the phase of the installation, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swap-") as scratch:
        root = Path(scratch)
        sound = [measure(root, arguments.bundle, mode, arguments) for mode in arguments.mode or SWAP]
        subprocess.run(["chmod", "-R", "u+w", scratch], check=True)
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
