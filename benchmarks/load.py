"""How long a load after the first takes, beside the bare session of the same graph.

    python -m benchmarks.load BUNDLE [--threads N] [--rounds N] [--derived DIR]

``bare`` opens the session and nothing else; ``first`` is the engine on a device that has measured nothing, and
``after`` the engine with the verdict of its self-test beside it. Taken in turns, each in a process of its own; medians,
in seconds of the clock and of processors: what the engine reads beside the session, it reads on another core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from packager.evaluate.evidence import host_line

LOAD = """
import sys, time
from pathlib import Path
import onnxruntime, onnxruntime_genai
from agent.engine.batched.engine import BatchedEngine
from agent.engine.batched.opening import open_model
from agent.engine.batched.runner import open_session
from agent.engine.config import read_config
from agent.engine.load_options import ModelFiles, Resources
kind, bundle, derived, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
started, worked = time.monotonic(), time.process_time()
if kind == "bare":
    open_session(bundle / read_config(bundle).filename, threads)
else:
    BatchedEngine(open_model(ModelFiles(bundle, derived if kind == "after" else None), Resources(threads)))
print(time.monotonic() - started, time.process_time() - worked)
"""


def seconds(kind: str, bundle: Path, derived: Path, threads: int) -> tuple[float, float]:
    """One load in a process of its own, its libraries imported before: of the clock, and of processors."""
    command = [sys.executable, "-c", LOAD, kind, str(bundle), str(derived), str(threads)]
    clock, worked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(clock), float(worked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--derived", type=Path, help="of a device that has the verdict: there is no first load then")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        place, kinds = given.derived or made, ("bare", "after")
        if given.derived is None:
            make = [sys.executable, "-m", "agent.worker.prepacking", str(given.bundle), made, "--verdict-only"]
            subprocess.run([*make, "--threads", str(given.threads)], check=True)
            kinds = ("bare", "first", "after")
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _ in range(given.rounds):
            for kind, times in found.items():
                times.append(seconds(kind, given.bundle, Path(place), given.threads))
    medians = {kind: [statistics.median(each) for each in zip(*times, strict=True)] for kind, times in found.items()}
    print(f"{host_line()}, load {os.getloadavg()[0]:.1f}\n")
    print("| load | seconds | of the bare session | processor seconds | of the bare session |\n|---|---|---|---|---|")
    for kind, (clock, worked) in medians.items():
        bare = medians["bare"]
        print(f"| {kind} | {clock:.3f} | {clock / bare[0]:.2f} | {worked:.3f} | {worked / bare[1]:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
