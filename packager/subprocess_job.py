"""Heavy work in a process of its own: its noise goes to a log, its memory goes back, its crash is only a result.

The job goes in as JSON on stdin; events come back as JSON lines on what was stdout. Inside the child stdout *is* the
log, so whatever prints there (the model builder prints thousands of lines) ends up where it belongs.
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
from pathlib import Path
from typing import IO, Any

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
"""Keys under which jobs name what they write."""

_ONLINE = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}


class Reporter:
    """The child's side of the pipe."""

    def __init__(self, handle: int) -> None:
        self._file = os.fdopen(handle, "w", encoding="utf-8")

    def _send(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), file=self._file, flush=True)

    def progress(self, done: float, total: float) -> None:
        """``done`` of ``total``."""
        self._send({"event": "progress", "done": done, "total": total})

    def result(self, value: dict[str, Any]) -> None:
        """The one result."""
        self._send({"event": "result", "value": value})

    def full(self) -> None:
        """The disk has no room."""
        self._send({"event": "full"})

    def short(self) -> None:
        """There is no memory left."""
        self._send({"event": "short"})

    def refused(self, message: str) -> None:
        """The input's fault, in one sentence."""
        self._send({"event": "refused", "message": message})


def child_main(work: Callable[[dict[str, Any], Reporter], dict[str, Any]]) -> None:
    """The whole of a child's ``__main__``: read the job, do ``work``, report."""
    reporter = Reporter(os.dup(1))
    os.dup2(2, 1)
    # A parent that is killed takes its heavy child along.
    end_with_parent()
    job: dict[str, Any] = {}
    try:
        job = json.load(sys.stdin)
        reporter.result(work(job, reporter))
    except (BuildRefused, EngineFailed) as error:
        reporter.refused(error.message)
        _write_down()
    except Exception as error:
        # Told first: the log may lie on the very disk that is full.
        if ran_full(error, [Path(job[name]) for name in WRITTEN if name in job]):
            reporter.full()
            _write_down()
            return
        if ran_short(error):
            reporter.short()
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
    module: str,
    job: dict[str, Any],
    log: Path,
    *,
    doing: str,
    on_progress: Callable[[float, float], None] | None = None,
    online: bool = False,
) -> dict[str, Any]:
    """Run ``python -m module`` on ``job``; the value it reported. Libraries may use the network only when ``online``.

    Raises:
        BuildRefused: it refused its input, or ended without a result (``doing`` says what it was at).
        StoreFull: no room for what it wrote.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as noise:
        noise.write(f"\n==== {module}\n".encode())
        noise.flush()
        env = {**PASSIVE, **os.environ, **OFFLINE} if not online else {**OFFLINE, **_ONLINE, **os.environ}
        process = start_module(module, noise, env)
        try:
            return _collect(process, job, log, doing, on_progress)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _collect(
    process: subprocess.Popen[bytes],
    job: dict[str, Any],
    log: Path,
    doing: str,
    on_progress: Callable[[float, float], None] | None,
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended already; its exit status says more
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress":
            if on_progress is not None:
                on_progress(event["done"], event["total"])
        elif event["event"] == "refused":
            raise BuildRefused(event["message"])
        elif event["event"] == "full":
            raise StoreFull(f"no space left while {doing} was writing")
        elif event["event"] == "short":
            raise BuildRefused(SHORT.format(doing=doing))
        else:
            value: dict[str, Any] = event["value"]
            return value
    status = process.wait()
    if status == -signal.SIGKILL:  # the kernel's way to find memory, and nobody else's here
        raise BuildRefused(SHORT.format(doing=doing))
    how = f"was ended by signal {-status}" if status < 0 else f"failed: {_last_line(log)}"
    raise BuildRefused(f"{doing} {how} (see {log})")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
