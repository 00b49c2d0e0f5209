"""The power is cut before every effect of first install and update; `make crash-full` does the rest as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("scenario", "least"), [("first install", 100), ("update", 50)])
def test_every_point_ends_well(tiny_bundle: Path, scenario: str, least: int) -> None:
    command = [sys.executable, "-m", "tests.crash", "--bundle", str(tiny_bundle), "--scenario", scenario]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    points = int(done.stdout.splitlines()[-1].split()[0])
    assert points >= least, "the effects are still numbered"
