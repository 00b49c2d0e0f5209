"""Ports for servers of tests: nobody else is given one, whether its server is there or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.broker import BLOCK, PORTS, free_port

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = f"""
import sys
from tests.broker import free_port
print(*(free_port() for _ in range({BLOCK + 5})), flush=True)
sys.stdin.read()
"""


def test_processes_at_the_same_time_have_none_in_common() -> None:
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    given = [free_port() for _ in range(BLOCK)]
    for process in processes:
        assert process.stdout is not None
        given += map(int, process.stdout.readline().split())
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert len(set(given)) == len(given) == BLOCK + 3 * (BLOCK + 5)
    assert set(given) <= set(PORTS)
