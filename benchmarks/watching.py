"""What processes take while they run: anonymous memory by process, in a memory cgroup or without."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PAUSE = 0.1
"""Looking through all processes takes 2 ms of a core that the build could use."""
LEAVES = 100
GIB = 2**30


@dataclass
class Watched:
    """One command and its children: the most anonymous bytes by process and together, and how long each was there; the
    most bytes on the disk in what it was to fill.
    """

    together: int = 0
    disk: int = 0
    peaks: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    output: str = ""


def anonymous(pid: int) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def name_of(process: psutil.Process) -> str:
    """The module that a process runs."""
    words = process.cmdline()
    return words[words.index("-m") + 1] if "-m" in words else "other"


def within(group: Path | None) -> list[str]:
    """Put before a command: what runs it in ``group``."""
    return [] if group is None else ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]


def look(started: psutil.Process, found: Watched) -> None:
    """Take down what ``started`` and its children take now."""
    now: dict[str, int] = {}
    try:
        for process in [started, *started.children(recursive=True)]:
            name = name_of(process)
            now[name] = now.get(name, 0) + anonymous(process.pid)
            found.seconds[name] = max(found.seconds.get(name, 0.0), time.time() - process.create_time())
    except psutil.Error:
        return
    found.together = max(found.together, sum(now.values()))
    for name, size in now.items():
        found.peaks[name] = max(found.peaks.get(name, 0), size)


def watch(command: list[str], group: Path | None, log: Path, place: Path | None = None) -> Watched:
    """Run ``command`` to its end, in the memory cgroup ``group`` if there is one; what it says goes to ``log``, and
    what it writes below ``place`` is added up.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    found = Watched()
    with log.open("wb") as output:
        started = psutil.Popen([*within(group), *command], stdout=output, stderr=subprocess.STDOUT)
        while started.poll() is None:
            look(started, found)
            if place is not None:
                found.disk = max(found.disk, bytes_in(place))
            time.sleep(PAUSE)
    found.output = log.read_text("utf-8", "replace")
    if started.returncode != 0:
        print(found.output, file=sys.stderr)
        raise SystemExit(started.returncode)
    return found


@contextmanager
def memory_group(limit: float | None) -> Iterator[Path | None]:
    """A cgroup of ``limit`` GiB, version 1 or 2, gone at the end."""
    if limit is None:
        yield None
        return
    first = Path("/sys/fs/cgroup/memory")
    root, file = (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
    group = root / f"edge-size-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(str(int(limit * GIB)))
        for swap, most in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", int(limit * GIB))):
            with suppress(OSError):  # a kernel that does not count swap
                (group / swap).write_text(str(most))
        yield group
    finally:
        for _ in range(LEAVES):  # a process that has ended leaves its group a moment later
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(PAUSE)


def killed_for_memory(group: Path) -> int:
    """How many processes of ``group`` the kernel has ended since they had no memory left."""
    for file in ("memory.events", "memory.oom_control"):
        with suppress(OSError):
            found = re.search(r"^oom_kill (\d+)$", (group / file).read_text("ascii"), re.MULTILINE)
            if found is not None:
                return int(found[1])
    return 0


def bytes_in(directory: Path) -> int:
    """Of all files, each once, however many links it has; what goes while we look does not count."""
    files: dict[int, int] = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            state = path.lstat()
            if stat.S_ISREG(state.st_mode):
                files[state.st_ino] = state.st_size
    return sum(files.values())
