"""Dear things are made once, whoever asks at the same time, and never stand there half."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from packager.build.build_cache import (
    FORGOTTEN_SECONDS,
    drop,
    get_or_create,
    have,
    hold,
    locked,
    put,
    sweep,
    using,
)

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
    old, young, lock = (tmp_path / name for name in (f".{'1' * 32}", "2" * 32, f".{'1' * 32}.lock"))
    for path in (old, young):
        path.mkdir()
    lock.touch()
    week_ago = time.time() - FORGOTTEN_SECONDS - 60
    for path in (old, lock):
        os.utime(path, (week_ago, week_ago))
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [young]


def fill(staging: Path) -> None:
    (staging / "weights").write_bytes(bytes(100))


def test_what_is_used_stays_until_nobody_uses_it(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    began = threading.Event()

    def clean() -> None:
        began.set()
        drop(entry)

    with using():
        have(entry, fill)
        have(entry, fill)  # again, by another part of the build
        assert not drop(entry, wait=False)
        cleaning = threading.Thread(target=clean)
        cleaning.start()
        assert began.wait(120)
        with subprocess.Popen(
            [sys.executable, "-c", USER, str(entry)], stdout=subprocess.PIPE, text=True
        ) as second:  # which does not wait for the first
            assert second.communicate()[0].split() == ["True", "False"]
        assert (entry / "weights").exists()
        assert cleaning.is_alive()
    cleaning.join(120)
    assert list(tmp_path.iterdir()) == [], "no lock either"
    assert not hold(entry)


USER = """
import sys
from pathlib import Path
from packager.build.build_cache import drop, hold, using

with using():
    print(hold(Path(sys.argv[1])), drop(Path(sys.argv[1]), wait=False))
"""


def test_without_a_use_nothing_is_held(tmp_path: Path) -> None:
    have(tmp_path / "entry", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    assert drop(tmp_path / "entry", wait=False)


def test_one_that_cannot_be_used_any_more_is_made_anew(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    have(entry, lambda staging: (staging / "link").symlink_to(tmp_path / "gone"))

    def make(staging: Path) -> None:
        (tmp_path / "there").touch()
        (staging / "link").symlink_to(tmp_path / "there")

    have(entry, make, whole=lambda made: (made / "link").exists())
    assert (entry / "link").readlink() == tmp_path / "there"


def test_what_a_killed_process_was_making_goes_when_it_is_made(tmp_path: Path) -> None:
    entry, other = tmp_path / "entry-5.1.0", tmp_path / "entry-5.1.0.scales"
    with start(entry, "first") as first, start(other, "other") as beside:
        assert (line(first), line(beside)) == ("making", "making")
        first.kill()
        first.communicate()
        assert len(list(tmp_path.glob(".entry-5.1.0.*"))) == 4
        with locked(entry):
            get_or_create(entry, fill)
        [left] = tmp_path.glob(".entry-5.1.0.scales.????????")
        assert sorted(path.name for path in tmp_path.glob(".*")) == sorted([left.name, f".{other.name}.lock"])
        assert beside.communicate("\n")[0].split() == ["other"]


def test_what_stands_in_the_cache_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, flushed, sync = tmp_path / "entry", [], os.fsync

    def seen(handle: int) -> None:
        flushed.append((str(Path(f"/proc/self/fd/{handle}").readlink()), entry.exists()))
        sync(handle)

    def make(staging: Path) -> None:
        (staging / "folder").mkdir()
        (staging / "folder" / "weights").write_bytes(b"w")
        (staging / "config").write_bytes(b"c")
        (staging / "source").symlink_to("/etc/hostname")

    monkeypatch.setattr(os, "fsync", seen)
    with locked(entry):
        get_or_create(entry, make)
    before = {Path(path).name for path, there in flushed if not there}
    assert {"weights", "folder", "config"} <= before
    assert "hostname" not in before, "what a link leads to is somebody else's"
    assert (str(tmp_path), True) in flushed, "and the name after it"
    (tmp_path / "part").write_bytes(b"p")
    flushed.clear()
    put(tmp_path / "part", tmp_path / "shard")
    assert [Path(path).name for path, _ in flushed] == ["part", tmp_path.name]
