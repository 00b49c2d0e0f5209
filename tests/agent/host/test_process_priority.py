"""What can wait gives way to what answers: processes as they are started, looked at from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from agent.host.process_priority import MAX_NICE, OOM_SCORE_INSTALLER
from agent.install.prepack import COMMAND as PREPACKING
from agent.install.process.client import COMMAND as INSTALLER
from agent.install.process.installer import NICENESS

SECONDS = 120.0


def settles(command: Sequence[str], niceness: int, to_go: int, given: int | socket.socket = subprocess.PIPE) -> bool:
    """Whether the process becomes as weak as that; it is ended."""
    process = subprocess.Popen(command, stdin=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    score = Path(f"/proc/{process.pid}/oom_score_adj")
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline and process.poll() is None:
            # One read: with a second, for the end of the file, a value that changes between them comes in pieces.
            with score.open("rb", buffering=0) as file:
                now = int(file.read(16))
            if psutil.Process(process.pid).nice() == niceness and now == to_go:
                return True
            time.sleep(0.01)
        return False
    finally:
        process.kill()
        process.communicate()


def test_making_prepacked_weights_gives_way_to_everything(tmp_path: Path) -> None:
    # It waits for somebody to write the bundle's configuration.
    os.mkfifo(tmp_path / "genai_config.json")
    (tmp_path / "derived").mkdir()
    assert settles([*PREPACKING, str(tmp_path), str(tmp_path / "derived")], MAX_NICE, OOM_SCORE_INSTALLER)


def test_an_installer_gives_way_to_what_answers() -> None:
    # It waits for its job.
    inherited = os.getpriority(os.PRIO_PROCESS, 0)
    assert settles(INSTALLER, max(NICENESS, inherited), OOM_SCORE_INSTALLER)


@pytest.mark.parametrize(("before", "wanted", "after"), [(0, 10, 10), (15, 10, 15), (5, 19, 19)])
def test_nobody_gets_stronger_by_giving_way(before: int, wanted: int, after: int) -> None:
    text = (
        "import os, sys; from agent.host.process_priority import set_nice, set_oom_score_adj;"
        "os.setpriority(os.PRIO_PROCESS, 0, int(sys.argv[1]));"
        "set_nice(int(sys.argv[2])); set_oom_score_adj(700); set_oom_score_adj(600);"
        "print(os.getpriority(os.PRIO_PROCESS, 0), end=' ');"
        "print(open('/proc/self/oom_score_adj').read().strip())"
    )
    inherited = os.getpriority(os.PRIO_PROCESS, 0)
    command = [sys.executable, "-c", text, str(max(before, inherited)), str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [str(max(after, inherited)), "700"]


def test_a_child_worker_takes_its_niceness_from_zero() -> None:
    """Its place in the order of those to be ended it takes when it shuts itself in (``test_isolation.py``)."""
    inherited = os.getpriority(os.PRIO_PROCESS, 0)
    command = [sys.executable, "-P", "-m", "agent.worker.main", "--fd", "0", "--nice", "3", "--child"]
    own = int(Path("/proc/self/oom_score_adj").read_text())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert settles(command, max(3, inherited), own, theirs)
