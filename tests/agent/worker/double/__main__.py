"""The double as a process: ``tests.agent.worker.double.DOUBLE`` with ``--fd N --nice N`` behind it.

The name of the bundle's directory says how it loads: ``refused``, ``dies``, ``slow`` (never, in silence), ``stalls``
(never, after one sign of life). With EDGE_STALL naming a file, it loads for as long as that is there. With EDGE_HOLD
naming one, answers that wait are let go in a worker that is loaded when that is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from agent.engine.interface import Progress
from agent.worker import main
from agent.worker.protocol import Load
from contract.errors import EngineFailed
from contract.system.parent_death import end_with_parent
from tests.agent.worker.double.engine import ScriptedEngine, obey

main.PROGRESS_SECONDS = 0.0


def option(name: str) -> int:
    return int(sys.argv[sys.argv.index(name) + 1])


def meet(mishap: str) -> None:
    match mishap:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            print("these are my last words", file=sys.stderr, flush=True)
            os._exit(3)
        case "hang":
            time.sleep(3600)
        case "garbage":
            os.write(option("--fd"), b"\0\0\0\3abc")
        case "environment":
            raise EngineFailed(f"telemetry {os.environ['ORT_DISABLE_TELEMETRY']} nice {os.nice(0)}")
        case _:
            obey(mishap)


def open_engine(load: Load, progress: Progress) -> ScriptedEngine:
    if stall := os.environ.get("EDGE_STALL"):
        Path(stall).with_suffix(".loading").touch()
        while Path(stall).exists():
            time.sleep(0.01)
    match Path(load.bundle_dir).name:
        case "stalls":
            progress("self-test")
            time.sleep(3600)
        case "refused":
            raise EngineFailed("there is no model in there")
        case "slow":
            time.sleep(3600)
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
    engine = ScriptedEngine(mishap=meet)
    if (hold := os.environ.get("EDGE_HOLD")) and not Path(hold).exists():
        engine.let_go()
    return engine


if __name__ == "__main__":
    os.nice(option("--nice"))
    end_with_parent()
    with socket.socket(fileno=option("--fd")) as connection:
        sys.exit(main.serve(connection, open_engine))
