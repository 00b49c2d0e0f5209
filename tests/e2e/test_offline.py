"""``make demo`` once more, on a machine that has no network and no mosquitto."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.broker import find_mosquitto

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.root
@pytest.mark.timeout(600)
def test_a_second_demo_needs_neither_network_nor_mosquitto() -> None:
    assert shutil.which("unshare"), "util-linux is part of every Debian"
    hide = f"mount --bind /dev/null {mosquitto} && " if (mosquitto := find_mosquitto()) else ""
    # A network namespace of its own with loopback only; the mount hides mosquitto in this namespace alone.
    script = f"ip link set lo up && {hide}exec make demo PYTHON=python3"
    environment = {name: value for name, value in os.environ.items() if name != "EDGE_BROKER"}
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "iotcore listens" in done.stdout
    assert "Paris" in done.stdout
