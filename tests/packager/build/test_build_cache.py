"""Dear things are made once, whoever asks at the same time, and never stand there half."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packager.build.build_cache import FORGOTTEN_SECONDS, get_or_create, locked, sweep

MAKER = """
import sys, time
from pathlib import Path
from packager.build.build_cache import get_or_create, locked

entry = Path(sys.argv[1])

def make(staging):
    (staging / "made").write_text(sys.argv[2])
    print("making", flush=True)
    sys.stdin.readline()

with locked(entry):
    get_or_create(entry, make)
print((entry / "made").read_text(), flush=True)
"""


def start(entry: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(entry), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_who_comes_second_waits_and_takes_what_the_first_made(tmp_path: Path) -> None:
    entry = tmp_path / "shelf" / "entry"
    with start(entry, "first") as first, start(entry, "second") as second:
        # Whichever of the two gets there first, the other makes nothing.
        said = []
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in (first, second):
            said.append(process.communicate()[0].split())
    assert sum("making" in words for words in said) == 1
    assert said[0][-1] == said[1][-1] == (entry / "made").read_text()
    assert list(entry.parent.iterdir()) == [entry], "no lock, no staging"


def test_who_waits_for_one_that_is_killed_makes_it_himself(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    with start(entry, "first") as first:
        assert line(first) == "making"
        with start(entry, "second") as second:
            first.kill()
            assert line(second) == "making"
            assert second.communicate("\n")[0].split() == ["second"]
    assert (entry / "made").read_text() == "second"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(staging: Path) -> None:
        (staging / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), locked(tmp_path / "entry"):
        get_or_create(tmp_path / "entry", fail)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_without_its_mark_is_made_anew(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / "half").touch()
    with locked(entry):
        get_or_create(entry, lambda staging: (staging / "report").touch(), mark="report")
    assert [path.name for path in entry.iterdir()] == ["report"]


def test_what_nobody_came_back_for_is_swept(tmp_path: Path) -> None:
    old, young, lock = tmp_path / ".old", tmp_path / "young", tmp_path / ".old.lock"
    for path in (old, young):
        path.mkdir()
    lock.touch()
    week_ago = time.time() - FORGOTTEN_SECONDS - 60
    for path in (old, lock):
        os.utime(path, (week_ago, week_ago))
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [young]
