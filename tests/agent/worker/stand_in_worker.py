"""A worker process around the stand-in engine, which misbehaves when a prompt asks for it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import socket

from agent.engine.interface import CanaryScore, Generation, Progress, StepEvent
from agent.worker import main
from agent.worker.main import serve
from agent.worker.protocol import Load
from contract.errors import EngineFailed
from contract.system.parent_death import end_with_parent
from tests.agent.engine.stand_in import StandIn

main.PROGRESS_SECONDS = 0.0


class Moody(StandIn):
    """Obeys ``crash``, ``raise``, ``stop``, ``exit`` and ``garbage`` as prompts; takes its time over ``dawdle…``, and
    says of ``read N SECONDS`` that it reads N tokens in one piece, for so long.
    """

    @property
    def next_read(self) -> int:
        return max((tokens for tokens, _ in self._reading()), default=0)

    def _reading(self) -> list[tuple[int, float]]:
        """Of those that have not begun."""
        prompts = [(each.generation.prompt or "").split() for each in self._waiting]
        return [(int(words[1]), float(words[2])) for words in prompts if words[:1] == ["read"]]

    def step(self) -> list[StepEvent]:
        time.sleep(max((seconds for _, seconds in self._reading()), default=0.0))
        if any((answer.generation.prompt or "").startswith("dawdle") for answer in self._active):
            time.sleep(0.02)
        return super().step()

    def admit(self, generation: Generation) -> None:
        match generation.prompt:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "raise":
                raise EngineFailed("the runtime gave up")
            case "surprise":
                raise ZeroDivisionError("one over none")
            case "exit":
                print("these are my last words", file=sys.stderr, flush=True)
                os._exit(3)
            case "hang":
                time.sleep(3600)
            case "garbage":
                os.write(CONNECTION, b"\0\0\0\3abc")
            case "environment":
                raise EngineFailed(f"telemetry {os.environ['ORT_DISABLE_TELEMETRY']} nice {os.nice(0)}")
            case _:
                super().admit(generation)

    def score(self, prompt: str, text: str, adapter: str | None = None) -> CanaryScore:
        if prompt == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(prompt, text)


def open_engine(load: Load, progress: Progress) -> Any:
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
    return Moody(Path(load.bundle_dir))


if __name__ == "__main__":
    CONNECTION = int(sys.argv[sys.argv.index("--fd") + 1])
    os.nice(int(sys.argv[sys.argv.index("--nice") + 1]))
    end_with_parent()
    with socket.socket(fileno=CONNECTION) as connection:
        sys.exit(serve(connection, open_engine))
