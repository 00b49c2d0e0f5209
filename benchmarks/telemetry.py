"""What the agent takes when it has nothing to do but look after the box: ``python -m benchmarks.telemetry [--json]``.

An agent without a model on a real broker, telemetry every ten seconds: its processor time over a while and its memory
(goals: at most 0.3 % of one core, 45 MB PSS). Beside it the cost of one sample, taken many times in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.host import kernel
from agent.telemetry.system import SystemSampler
from tests.broker import Broker
from tests.e2e.raw_client import RawClient

GOAL_PERCENT = 0.3
GOAL_PSS = 45 << 20
INTERVAL = 10.0
SETTLE_SECONDS = 25.0
"""Imports, the first connection and two samples are not what is measured."""

TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    return kernel.process_ticks(Path(f"/proc/{pid}/stat").read_text())[0] / TICKS


def cost_of_a_sample(rounds: int = 300) -> float:
    """Processor seconds of one whole sample, of this process."""
    sampler = SystemSampler(Path("/"))
    sampler.sample({os.getpid(): "bench"})
    began = time.process_time()
    for _ in range(rounds):
        sampler.sample({os.getpid(): "bench"})
    return (time.process_time() - began) / rounds


def measure_agent(seconds: float) -> dict[str, Any]:
    """Processor share and memory of an idle agent."""
    with tempfile.TemporaryDirectory() as directory:
        broker = Broker(Path(directory) / "broker")
        broker.start()
        config = Path(directory) / "agent.toml"
        config.write_text(
            f'device = "bench"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {broker.port}\n'
            f"[telemetry]\ninterval_seconds = {INTERVAL}\n"
        )
        agent = subprocess.Popen(
            [sys.executable, "-m", "agent.cli", "run", "--config", str(config)], stderr=subprocess.DEVNULL
        )
        client = RawClient(broker.port, "reader", "bench")
        try:
            client.next_device_message("health")
            time.sleep(SETTLE_SECONDS)
            began, used = time.monotonic(), processor_seconds(agent.pid)
            time.sleep(seconds)
            spent = processor_seconds(agent.pid) - used
            wall = time.monotonic() - began
            rollup = Path(f"/proc/{agent.pid}/smaps_rollup").read_text()
            sample = client.next_device_message("telemetry/system")
            return {
                "broker": broker.kind,
                "seconds": round(wall, 1),
                "percent_of_one_core": round(100 * spent / wall, 3),
                "pss_bytes": kernel.proportional_bytes(rollup),
                "payload_bytes": len(json.dumps(sample)),
            }
        finally:
            client.close()
            agent.terminate()
            agent.wait(30)
            broker.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to measure (default 120)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()
    each = cost_of_a_sample()
    found = measure_agent(arguments.seconds)
    found |= {
        "load_average": round(os.getloadavg()[0], 2),
        "milliseconds_a_sample": round(1000 * each, 3),
        "sampling_percent_of_one_core": round(100 * each / INTERVAL, 4),
        "goal_percent": GOAL_PERCENT,
        "goal_pss_bytes": GOAL_PSS,
    }
    found["reached"] = found["percent_of_one_core"] <= GOAL_PERCENT and found["pss_bytes"] <= GOAL_PSS
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"idle agent over {found['seconds']:.0f} s, load average {found['load_average']}:")
        print(f"  {found['percent_of_one_core']:.3f} % of one core (goal {GOAL_PERCENT} %)")
        print(f"  {found['pss_bytes'] / 2**20:.1f} MiB PSS (goal {GOAL_PSS / 2**20:.0f} MiB)")
        sampling = found["sampling_percent_of_one_core"]
        print(f"  {found['milliseconds_a_sample']} ms a sample, which is {sampling} % of one core")
    return 0 if found["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
