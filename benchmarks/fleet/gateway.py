"""What the gateway adds to a request: ``python -m benchmarks.fleet.gateway [--rounds 400]``.

The same requests, turn by turn, to the same device and broker: over MQTT with the Python client, and over HTTP with a
kept connection through ``edge-fleet serve``, a process of its own. The device is real but for its model, which answers
at once, so that what is measured is the way. What the gateway adds is the median of the differences of neighbours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge_bundle import AsyncClient
from tests.agent.device import sealed
from tests.broker import Broker, free_port
from tests.fleet.gateway.stage import make_device
from tests.fleet.waiting import until

WARM_UP = 30


def main() -> int:
    """Measure and print a table, and JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), arguments.rounds, arguments.tokens)
    if arguments.json:
        print(json.dumps(found))
        return 0
    print(f"{found['processor']}, {found['broker']}, {arguments.rounds} rounds, {arguments.tokens} tokens an answer")
    print(f"{'':10}  {'MQTT':>10}  {'gateway':>10}  {'adds':>10}  {'p95 adds':>10}")
    for kind in ("whole", "stream"):
        row = found[kind]
        print(
            f"{kind:10}  {row['mqtt_ms']:7.2f} ms  {row['gateway_ms']:7.2f} ms  "
            f"{row['adds_ms']:7.2f} ms  {row['adds_p95_ms']:7.2f} ms"
        )
    return 0


def measure(directory: Path, rounds: int, tokens: int) -> dict[str, Any]:
    """Medians in milliseconds."""
    broker = Broker(directory / "broker")
    broker.start()
    device = make_device(directory, broker, "box", sealed())
    try:
        with _gateway(directory, broker) as port:
            found: dict[str, Any] = asyncio.run(_compare(broker, port, rounds, tokens))
    finally:
        device.stop()
        broker.stop()
    return {"processor": processor(), "broker": broker.kind, **found}


@contextlib.contextmanager
def _gateway(directory: Path, broker: Broker) -> Iterator[int]:
    """A process that serves nothing else; its port."""
    port = free_port()
    words = ["--roles", "gateway", "--without-keys", "--listen", f"127.0.0.1:{port}", "--broker", broker.url]
    command = [sys.executable, "-m", "fleet.cli", "serve", *words, "--database", f"sqlite:///{directory}/fleet.db"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _is_well(port), "the gateway to be ready")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _is_well(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
        return True
    return False


async def _compare(broker: Broker, port: int, rounds: int, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"count {tokens}"}]
    found: dict[str, Any] = {}
    over_http = _over_http(port, messages)
    async with AsyncClient(broker.url) as client:
        for kind, stream in (("whole", False), ("stream", True)):
            times: dict[str, list[float]] = {"mqtt": [], "gateway": []}
            for number in range(WARM_UP + rounds):
                began = time.perf_counter()
                if stream:
                    async for _ in client.stream(device="box", messages=messages):
                        pass
                else:
                    await client.complete(device="box", messages=messages)
                middle = time.perf_counter()
                await asyncio.to_thread(over_http, stream)
                end = time.perf_counter()
                if number >= WARM_UP:
                    times["mqtt"].append(1000 * (middle - began))
                    times["gateway"].append(1000 * (end - middle))
            found[kind] = _summary(times)
    return found


def _over_http(port: int, messages: list[dict[str, str]]) -> Callable[[bool], None]:
    """A request over one kept connection, read to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(stream: bool) -> None:
        body = json.dumps({"model": "device:box", "messages": messages, "stream": stream})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the gateway says {answer.status}: {data[:300]!r}")

    return ask


def _summary(times: dict[str, list[float]]) -> dict[str, float]:
    differences = [gateway - mqtt for gateway, mqtt in zip(times["gateway"], times["mqtt"], strict=True)]
    mqtt, gateway = statistics.median(times["mqtt"]), statistics.median(times["gateway"])
    return {
        "mqtt_ms": mqtt,
        "gateway_ms": gateway,
        "adds_ms": statistics.median(differences),
        "adds_p95_ms": statistics.quantiles(differences, n=20)[18],
        "ratio": gateway / mqtt,
    }


def processor() -> str:
    """Its name, as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
