"""Readings over time: speeds across restarts, and their bars."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from packager.watch.series import BARS, GAP, KEPT, Series, Speed, sparkline


def test_a_speed_is_the_difference_of_two_readings() -> None:
    speed = Speed()
    for count, at in ((0, 0.0), (50, 10.0), (50, 20.0), (200, 30.0)):
        speed.read(count, at, era=1)
    assert speed.series.values == [None, 5.0, 0.0, 15.0]


def test_a_counter_that_began_anew_has_no_speed() -> None:
    speed = Speed()
    speed.read(1000, 0.0, era=1)
    speed.read(2000, 10.0, era=2)  # the agent was restarted and has counted further since
    speed.read(100, 20.0, era=2)  # it fell: an answer was begun again
    speed.read(200, 30.0, era=2)
    assert speed.series.values == [None, None, None, 10.0]


def test_only_the_last_readings_are_kept() -> None:
    series = Series()
    for number in range(KEPT + 5):
        series.add(float(number))
    assert len(series.values) == KEPT
    assert series.last == KEPT + 4


def test_bars_show_the_newest_on_the_right_and_gaps_as_gaps() -> None:
    assert sparkline([0.0, None, 5.0, 10.0], 6) == f"  {BARS[0]}{GAP}{BARS[4]}{BARS[7]}"
    assert sparkline([1.0, 2.0, 3.0], 2, high=3.0) == f"{BARS[5]}{BARS[7]}"
    assert sparkline([], 3) == "   "


@given(
    st.lists(st.none() | st.floats(-1e6, 1e6)),
    st.integers(0, 80),
    st.floats(-1e3, 1e3),
    st.none() | st.floats(-1e3, 1e3),
)
def test_a_sparkline_is_always_as_wide_as_asked(
    values: list[float | None], width: int, low: float, high: float | None
) -> None:
    line = sparkline(values, width, low=low, high=high)
    assert len(line) == width
    assert set(line) <= {*BARS, GAP}
