"""Heavy work in a process of its own: its noise goes to a log, its memory goes back, its crash is only a result.

A kind of job is a :class:`Task`, which both sides read: the job goes in as JSON on stdin; events come back as JSON
lines on what was stdout. Inside the child stdout *is* the log, so whatever prints there (the model builder prints
thousands of lines) ends up where it belongs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused, EngineFailed, StoreFull
from contract.system.parent_death import end_with_parent

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}
"""Nothing is downloaded or reported, and iteration orders are the same in every build."""

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
"""Threads of torch's that have nothing to do give their core away instead of spinning, unless the environment asks."""


FULL = (errno.ENOSPC, errno.EDQUOT)
LEAST_FREE = 2**20
OUT_OF_MEMORY = ("can't allocate memory", "std::bad_alloc", os.strerror(errno.ENOMEM))
SHORT = "memory ran out while {doing} was at work; end other programs and build again, which resumes from what is done"
WRITTEN = ("out", "stages", "scratch")
"""Fields in which jobs name what they write."""

_ONLINE = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}


Q = TypeVar("Q", bound="Job")
R = TypeVar("R")
T = TypeVar("T")


class Job(Struct, frozen=True, forbid_unknown_fields=True):
    """What a child is asked; each kind of job has its own."""


@dataclass(frozen=True)
class Task(Generic[Q, R]):
    """A kind of job, as both sides know it: ``module`` does it, ``doing`` says at what for people."""

    module: str
    job: type[Q]
    result: type[R]
    doing: str


class Progress(Struct, frozen=True, tag_field="event", tag="progress"):
    done: float
    total: float


class Result(Struct, frozen=True, tag_field="event", tag="result"):
    """The one result, of the task's type."""

    value: Any


class Refused(Struct, frozen=True, tag_field="event", tag="refused"):
    """The input's fault, in one sentence."""

    message: str


class Full(Struct, frozen=True, tag_field="event", tag="full"):
    """The disk has no room."""


class Short(Struct, frozen=True, tag_field="event", tag="short"):
    """There is no memory left."""


Event = Progress | Result | Refused | Full | Short


def to_json(value: object) -> str:
    """On one line. Not msgspec's encoder: numbers that are none must come through, and be refused by who compares."""
    return json.dumps(msgspec.to_builtins(value, enc_hook=str))


def from_json(text: str | bytes, kind: type[T]) -> T:
    """What :func:`to_json` wrote.

    Raises:
        msgspec.ValidationError, ValueError: it is something else.
    """
    return msgspec.convert(json.loads(text), kind, dec_hook=lambda path, value: path(value))


class Reporter:
    """The child's side of the pipe."""

    def __init__(self, handle: int) -> None:
        self._file = os.fdopen(handle, "w", encoding="utf-8")

    def send(self, event: Event) -> None:
        """Tell the parent."""
        print(to_json(event), file=self._file, flush=True)

    def progress(self, done: float, total: float) -> None:
        """``done`` of ``total``."""
        self.send(Progress(done, total))


def child_main(task: Task[Q, R], work: Callable[[Q, Reporter], R]) -> None:
    """The whole of a child's ``__main__``: read the job, do ``work``, report."""
    pipe = os.dup(1)
    reporter = Reporter(pipe)
    os.dup2(2, 1)
    # A parent that is killed takes its heavy child along, also one that was still loading its libraries.
    end_with_parent(pipe)
    written: list[Path] = []
    try:
        job = from_json(sys.stdin.read(), task.job)
        written = [Path(getattr(job, name)) for name in WRITTEN if getattr(job, name, None)]
        reporter.send(Result(work(job, reporter)))
    except (BuildRefused, EngineFailed) as error:
        reporter.send(Refused(error.message))
        _write_down()
    except Exception as error:
        # Told first: the log may lie on the very disk that is full.
        if ran_full(error, written):
            reporter.send(Full())
            _write_down()
            return
        if ran_short(error):
            reporter.send(Short())
            _write_down()
            return
        _write_down()
        sys.exit(1)
    with contextlib.suppress(OSError):
        sys.stdout.flush()


def _write_down() -> None:
    with contextlib.suppress(OSError):
        traceback.print_exc()
        sys.stderr.flush()


def ran_full(error: BaseException, directories: Sequence[Path]) -> bool:
    """Whether ``error`` comes of a disk without room: libraries say so in errors of their own, or only in words.

    ``directories`` are where the job writes: what fails in any other way where not a mebibyte is left, fails for that.
    """
    link: BaseException | None = error
    while link is not None:
        if getattr(link, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(link):
            return True
        link = link.__cause__ or link.__context__
    existing = {next(path for path in (directory, *directory.parents) if path.exists()) for directory in directories}
    return any(shutil.disk_usage(path).free < LEAST_FREE for path in existing)


def ran_short(error: BaseException) -> bool:
    """Whether ``error`` comes of memory that could not be had: torch has no error of its own for that."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MemoryError) or getattr(link, "errno", None) == errno.ENOMEM:
            return True
        if any(words in str(link) for words in OUT_OF_MEMORY):
            return True
        link = link.__cause__ or link.__context__
    return False


def start_module(module: str, noise: IO[bytes], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """``python -m module``, its standard error going to ``noise``."""
    return subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, env=env
    )


def run_child(
    task: Task[Q, R],
    job: Q,
    log: Path,
    *,
    doing: str | None = None,
    on_progress: Callable[[float, float], None] | None = None,
    online: bool = False,
) -> R:
    """Do ``job`` in a process of its own; what it reported. Libraries may use the network only when ``online``;
    ``doing`` stands for what the task says that it is at.

    Raises:
        BuildRefused: it refused its input, or ended without a result.
        StoreFull: no room for what it wrote.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as noise:
        noise.write(f"\n==== {task.module}\n".encode())
        noise.flush()
        env = {**PASSIVE, **os.environ, **OFFLINE} if not online else {**OFFLINE, **_ONLINE, **os.environ}
        process = start_module(task.module, noise, env)
        try:
            value = _collect(process, to_json(job).encode(), log, doing or task.doing, on_progress)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    try:
        return msgspec.convert(value, task.result, dec_hook=lambda path, given: path(given))
    except msgspec.ValidationError as error:
        raise BuildRefused(f"{doing or task.doing} gave what cannot be read: {error}") from error


def _collect(
    process: subprocess.Popen[bytes],
    job: bytes,
    log: Path,
    doing: str,
    on_progress: Callable[[float, float], None] | None,
) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended already; its exit status says more
    for line in process.stdout:
        match _read_event(line):
            case Progress(done, total):
                if on_progress is not None:
                    on_progress(done, total)
            case Refused(message):
                raise BuildRefused(message)
            case Full():
                raise StoreFull(f"no space left while {doing} was writing")
            case Short():
                raise BuildRefused(SHORT.format(doing=doing))
            case Result(value):
                return value
    status = process.wait()
    if status == -signal.SIGKILL:  # the kernel's way to find memory, and nobody else's here
        raise BuildRefused(SHORT.format(doing=doing))
    how = f"was ended by signal {-status}" if status < 0 else f"failed: {_last_line(log)}"
    raise BuildRefused(f"{doing} {how} (see {log})")


def _read_event(line: bytes) -> Event:
    event: Event = msgspec.convert(json.loads(line), Event)
    return event


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
