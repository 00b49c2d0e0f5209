"""The clock that the ledger of answers and deadlines over restarts go by."""

from __future__ import annotations

import time

import pytest

from agent.clock import steady_clock

YEAR = 365 * 86400.0


@pytest.mark.parametrize("jump", [YEAR, -YEAR, 55 * YEAR])
def test_a_jump_of_the_wall_clock_is_not_followed(jump: float) -> None:
    wall, ticks = 1000.0, 7.0
    clock = steady_clock(lambda: wall, lambda: ticks)
    assert clock() == 1000.0
    wall += jump
    ticks += 3.0
    assert clock() == 1003.0
    assert steady_clock(lambda: wall, lambda: ticks)() == wall, "the next start goes by the clock as it is then"


def test_it_says_the_time_of_day_here() -> None:
    assert steady_clock()() == pytest.approx(time.time(), abs=5)
