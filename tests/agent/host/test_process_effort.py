"""A process that computes or reads is told from one that hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.host.process_effort import Effort, effort_of, own_effort


@pytest.mark.parametrize(
    ("seconds", "reads", "advanced"),
    [(10.0, 5, False), (10.001, 5, False), (10.02, 5, True), (12.0, 5, True), (10.0, 6, True)],
)
def test_what_counts_as_work(seconds: float, reads: int, advanced: bool) -> None:
    assert Effort(seconds, reads).advanced(Effort(10.0, 5), 1.0) is advanced


def test_computing_is_work() -> None:
    before = own_effort()
    while not own_effort().advanced(before, 1.0):
        sum(range(1000))
    assert effort_of(os.getpid()).seconds > 0


def test_of_a_process_that_is_over_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b) S 1 7 7 0 -1 4194560 900 0 31 0 250 50 0 0 20 0 1 0 9")
    assert effort_of(7, tmp_path) == Effort(300 / os.sysconf("SC_CLK_TCK"), 31)
    assert effort_of(8, tmp_path) == Effort(0.0, 0)
