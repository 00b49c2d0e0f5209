"""The power is cut before every effect of first install and update; `make crash-full` does the rest as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run_crash(bundle: Path, *arguments: str) -> int:
    """The number of points that were tried."""
    command = [sys.executable, "-m", "tests.crash", "--bundle", str(bundle), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1].split()[0])


@pytest.mark.parametrize(("scenario", "least"), [("first install", 100), ("update", 50)])
def test_every_point_ends_well(tiny_bundle: Path, scenario: str, least: int) -> None:
    assert run_crash(tiny_bundle, "--scenario", scenario) >= least, "the effects are still numbered"


def test_nothing_is_lost_that_must_not_be_when_unsynced_writes_are(tiny_bundle: Path) -> None:
    assert run_crash(tiny_bundle, "--scenario", "update", "--lose-unsynced", "--stride", "6") >= 10
