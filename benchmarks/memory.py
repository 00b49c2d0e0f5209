"""Anonymous memory of a loaded model: a whole worker of ours against the plain runtime.

    python -m benchmarks.memory BUNDLE [--threads N]

``plain runtime`` is a process that does what the runtime's own examples do, load a model and a tokenizer with
onnxruntime-genai; nothing else is loaded there. A worker is counted whole, as ``edge-agent run`` starts it: engine,
tokenizer, grammars, self-test, places for keys and values. Anonymous memory is what a process has for itself and
cannot give back: files that are mapped and unchanged are not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from agent.engine.interface import FinishEvent, Generation, StepEvent
from agent.worker.prepacking import prepack
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess

PLAIN = """
import sys
import onnxruntime_genai as og
model = og.Model(sys.argv[1])
tokenizer = og.Tokenizer(model)
print("loaded", flush=True)
sys.stdin.read()
"""


def anonymous(pid: int) -> float:
    """MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:")) / 1e6


def plain_runtime(bundle: Path) -> float:
    """Anonymous MB of a process with the model loaded by the runtime alone."""
    process = subprocess.Popen(
        [sys.executable, "-c", PLAIN, str(bundle)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    assert process.stdout is not None
    process.stdout.readline()
    found = anonymous(process.pid)
    process.communicate()
    return found


async def whole_worker(bundle: Path, derived: Path | None, threads: int) -> tuple[float, float]:
    """Anonymous MB of a worker once it is loaded, and after eight answers."""
    left = 8
    over = asyncio.Event()

    def hear(event: StepEvent) -> None:
        nonlocal left
        left -= isinstance(event, FinishEvent)
        if not left:
            over.set()

    worker = await WorkerProcess.start(
        WorkerSettings(engine="batched", threads=threads), bundle, derived_dir=derived, on_event=hear
    )
    loaded = anonymous(worker.pid)
    for number in range(8):
        worker.admit(Generation(number, f"c{number}", prompt=f"{number} ships are at sea.", max_tokens=64))
    await over.wait()
    answered = anonymous(worker.pid)
    await worker.close()
    return loaded, answered


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        derived = Path(scratch)
        prepack(arguments.bundle / "model.onnx", derived)
        base = plain_runtime(arguments.bundle)
        print(f"plain runtime, loaded: {base:.0f} MB anonymous")
        for name, place in (("its own copy of the weights", None), ("prepacked weights", derived)):
            loaded, answered = asyncio.run(whole_worker(arguments.bundle, place, arguments.threads))
            print(
                f"worker with {name}: {loaded:.0f} MB loaded ({loaded / base:.2f}×), {answered:.0f} MB after 8 answers"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
