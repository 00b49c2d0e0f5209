"""An agent process that serves a real bundle at a real broker, with its page of metrics and its sensors switched on."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.telemetry import families
from tests.agent.install.market import Device, Market
from tests.broker import Broker, free_port

SECONDS = 120.0


@contextmanager
def running_agent(directory: Path, bundle: Path) -> Iterator[tuple[Broker, int]]:
    """The broker and the port of the page."""
    market, device = Market(directory / "market", bundle), Device(directory / "state")
    market.publish("1.0.0", security_epoch=2)
    device.activate(device.install(market.job(device.directory.root, "1.0.0")))
    broker, page = Broker(directory / "broker"), free_port()
    broker.start()
    config = directory / "agent.toml"
    config.write_text(
        f'device = "box.7"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {broker.port}\n'
        f"[telemetry]\ninterval_seconds = 0.3\n[telemetry.prometheus]\nport = {page}\n"
        "[telemetry.home_assistant]\nenabled = true\n"
    )
    agent = subprocess.Popen([sys.executable, "-m", "agent.cli", "run", "--config", str(config)])
    try:
        yield broker, page
        agent.terminate()
        assert agent.wait(SECONDS) == 0
    finally:
        agent.kill()
        agent.wait()
        broker.stop()


def scrape(page: int, accept: str = "*/*") -> tuple[str, str]:
    """Content type and text."""
    request = urllib.request.Request(f"http://127.0.0.1:{page}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def scrape_until_ready(page: int, seconds: float = SECONDS) -> str:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            _, text = scrape(page)
            if re.search(r"^edge_ready\{.*\} 1$", text, re.MULTILINE) and "edge_memory_total_bytes" in text:
                return text
        assert time.monotonic() < deadline
        time.sleep(0.02)


MACHINES_OWN = {
    families.SWAP, families.SWAP_IN, families.SWAP_OUT, families.DISK_READ, families.DISK_WRITTEN, families.SENT,
    families.RECEIVED, families.PRESSURE, families.TEMPERATURE, families.TEMPERATURE_LIMIT, families.FREQUENCY,
    families.THROTTLE_EVENTS, families.THROTTLED, families.UNDERVOLTAGE, families.LOAD,
}  # fmt: skip
"""Not every machine has them."""
