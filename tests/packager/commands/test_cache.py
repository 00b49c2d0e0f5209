"""``edge-packager cache``: what is kept is listed and can be removed, never under a running build."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from contract.system.command_line import main
from packager.build.build_cache import forget_oldest, get_or_create, have, locked, sweep, using
from packager.build.cache import bound_cache, list_cache
from packager.cli import COMMANDS

ONE, TWO, THREE = ("1" * 32, "2" * 32, "3" * 32)
"""Names of entries, as builds give them."""


def cache(*words: str) -> int:
    return main("edge-packager", "", COMMANDS, ["cache", *words])


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Three entries, one of them old, and what is no entry: a lock, and a folder of somebody else's."""
    root = tmp_path / "cache"
    for name, size in ((f"checkpoints/{ONE}", 1000), (f"graphs/{TWO}", 500)):
        (root / name).mkdir(parents=True)
        (root / name / "weights").write_bytes(bytes(size))
    (root / "logs").mkdir()
    (root / "logs" / "tiny-1.0.0.log").write_bytes(b"words")
    os.utime(root / "checkpoints" / ONE, (1_000_000_000, 1_000_000_000))
    (root / "graphs" / f".{TWO}.lock").write_bytes(b"")
    (root / "test-bundles" / "mine").mkdir(parents=True)
    return root


def test_every_entry_is_listed_with_its_bytes(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache("list", "--cache", str(filled), "--json") == 0
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert next((entry["kind"], entry["name"], entry["size"]) for entry in entries) == ("checkpoints", ONE, 1000)
    assert {(entry["kind"], entry["size"]) for entry in entries} == {
        ("checkpoints", 1000),
        ("graphs", 500),
        ("logs", 5),
    }
    assert cache("list", "--cache", str(filled)) == 0
    assert "3 entries" in capsys.readouterr().out


def test_only_what_was_asked_for_is_removed(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache("clean", "--older-than", "1", "--cache", str(filled)) == 0
    assert "removed 1 entry, 0.0 MB" in capsys.readouterr().out
    assert cache("clean", "graphs", "--cache", str(filled)) == 0
    assert [entry.kind for entry in list_cache(filled)] == ["logs"]
    assert cache("clean", "--cache", str(filled)) == 0
    assert list_cache(filled) == []
    assert (filled / "test-bundles" / "mine").is_dir()


def test_what_no_build_has_made_is_never_removed(filled: Path) -> None:
    """A project's own folders, where somebody names the project as the cache."""
    others = [filled / name for name in ("checkpoints/epoch-3", "references/paper", "graphs/loss", "logs/train.log")]
    for path in others:
        path.mkdir(parents=True)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert [entry.name for entry in bound_cache(filled, time.time(), limit_bytes=1)] == [ONE]
    sweep(filled / "graphs")
    forget_oldest(filled / "references" / THREE, 1)
    assert cache("clean", "--cache", str(filled)) == 0
    assert all(path.is_dir() for path in others)
    assert not (filled / "graphs" / TWO).exists()


def test_too_much_is_not_kept_and_what_was_just_used_is(tmp_path: Path) -> None:
    day = 24 * 3600
    for age, name in ((40, ONE), (30, TWO), (0, THREE)):
        entry = tmp_path / "checkpoints" / name
        entry.mkdir(parents=True)
        (entry / "weights").write_bytes(bytes(1000))
        os.utime(entry, (100 * day - age * day, 100 * day - age * day))
    (tmp_path / "source-views" / ("4" * 32)).mkdir(parents=True)
    assert bound_cache(tmp_path, 100 * day, limit_bytes=3000) == []
    get_or_create(tmp_path / "checkpoints" / ONE, lambda staging: None)  # used again, now
    assert [entry.name for entry in bound_cache(tmp_path, 100 * day, limit_bytes=2500)] == [TWO]
    assert bound_cache(tmp_path, 100 * day, limit_bytes=10) == []
    assert sorted(entry.name for entry in list_cache(tmp_path)) == [ONE, THREE, "4" * 32]


def test_what_killed_builds_left_is_listed_removed_and_counted(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [filled / "checkpoints" / f".{TWO}-5.1.0.abcd_123", filled / "calibrated" / f".{THREE}"]
    for path in left:
        (path / "stages").mkdir(parents=True)
        (path / "stages" / "weights").write_bytes(bytes(2000))
    found = {entry.name: entry.size for entry in list_cache(filled)}
    assert {path.name: found[path.name] for path in left} == {path.name: 2000 for path in left}
    os.utime(left[0], (1_000_000_000, 1_000_000_000))
    removed = bound_cache(filled, 1_000_000_000 + 2 * 24 * 3600, limit_bytes=2999)
    assert [entry.name for entry in removed] in ([ONE, left[0].name], [left[0].name, ONE])
    cleaning = threading.Thread(target=cache, args=("clean", "calibrated", "--cache", str(filled)))
    with locked(filled / "calibrated" / THREE):  # one that goes on
        cleaning.start()
        cleaning.join(0.2)
        assert left[1].exists()
    cleaning.join(120)
    assert not left[1].exists()


def test_what_another_build_uses_is_not_waited_for_by_one_that_ends(tmp_path: Path) -> None:
    with using():
        have(tmp_path / "checkpoints" / ONE, lambda staging: (staging / "weights").write_bytes(bytes(1000)))
        assert bound_cache(tmp_path, time.time() + 10**6, limit_bytes=1) == []
    assert [entry.name for entry in bound_cache(tmp_path, time.time() + 10**6, limit_bytes=1)] == [ONE]


@pytest.mark.parametrize("days", ["nan", "-5", "inf", "-inf"])
def test_what_is_no_number_of_days_removes_nothing(filled: Path, days: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache("clean", f"--older-than={days}", "--cache", str(filled)) == 2
    assert f"--older-than {days} is no number of days; give one from 0 on" in capsys.readouterr().err
    assert len(list_cache(filled)) == 3


def test_a_cache_that_cannot_be_read_is_no_empty_one(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (filled / "checkpoints").rename(filled / "moved")
    (filled / "checkpoints").symlink_to("checkpoints")
    with pytest.raises(OSError, match="Too many levels"):
        (filled / "checkpoints").stat()
    assert cache("list", "--cache", str(filled)) == 5
    assert "reading the cache" in capsys.readouterr().err


def test_an_entry_that_is_in_use_is_waited_for(filled: Path) -> None:
    cleaning = threading.Thread(target=cache, args=("clean", "checkpoints", "--cache", str(filled)))
    with locked(filled / "checkpoints" / ONE):
        cleaning.start()
        cleaning.join(0.2)
        assert (filled / "checkpoints" / ONE / "weights").exists()
    cleaning.join(120)
    assert not (filled / "checkpoints" / ONE).exists()


def test_a_kind_that_does_not_exist_is_refused(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache("clean", "grafs", "--cache", str(filled)) == 2
    assert "'grafs' is not in the cache; choose from checkpoints" in capsys.readouterr().err
    assert len(list_cache(filled)) == 3
