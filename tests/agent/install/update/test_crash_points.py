"""The power is cut at every third point of first install and update; `make crash-full` does every point of all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


def crash(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.crash", "--brief", "--bundle", str(bundle), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def points_of(done: subprocess.CompletedProcess[str]) -> int:
    """The number of points that were tried, all of which ended well."""
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1].split()[0])


@pytest.mark.parametrize(("scenario", "least"), [("first install", 60), ("update", 33)])
def test_every_third_point_ends_well(tiny_bundle: Path, scenario: str, least: int) -> None:
    done = crash(tiny_bundle, "--scenario", scenario, "--stride", "3")
    assert points_of(done) >= least, "the effects are still numbered"


@pytest.mark.parametrize("scenario", ["first install by hand", "trust refresh", "adapter install"])
def test_some_points_of_other_deeds_end_well(tiny_bundle: Path, scenario: str) -> None:
    assert points_of(crash(tiny_bundle, "--scenario", scenario, "--stride", "15")) >= 1


def test_nothing_is_lost_that_must_not_be_when_unsynced_writes_are(tiny_bundle: Path) -> None:
    assert points_of(crash(tiny_bundle, "--scenario", "update", "--lose-unsynced", "--stride", "12")) >= 8


@pytest.mark.parametrize("what", ["files", "directories"])
def test_a_flush_that_is_left_out_is_noticed(tiny_bundle: Path, what: str) -> None:
    # More than the last: on a busy machine a run may need an effect less than the one that was counted.
    done = crash(tiny_bundle, "--scenario", "update", "--lose-unsynced", "--last", "3", "--forget", what)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "bundle" in done.stdout
