"""Maintenance windows, over midnight and over the changes of clocks."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from contract import windows
from contract.windows import Window, check_zone, is_open, next_opening, parse_time

OSLO = "Europe/Oslo"
NIGHT = Window(parse_time("22:00"), parse_time("05:00"), OSLO)


def at(text: str, zone: str = OSLO) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("when", "open_"),
    [("2026-06-01T21:59", False), ("2026-06-01T22:00", True), ("2026-06-02T04:59", True), ("2026-06-02T05:00", False)],
)
def test_a_night(when: str, open_: bool) -> None:
    assert is_open([NIGHT], at(when)) is open_


def test_the_hour_is_that_of_the_zone() -> None:
    assert is_open([NIGHT], at("2026-06-01T20:30", "UTC"))
    # In winter Oslo is one hour ahead, not two.
    assert not is_open([NIGHT], at("2026-12-01T20:30", "UTC"))


def test_days_are_those_on_which_it_begins() -> None:
    weekend = Window(NIGHT.start, NIGHT.end, OSLO, ("sat",))
    assert is_open([weekend], at("2026-06-06T23:00"))
    assert is_open([weekend], at("2026-06-07T03:00"))
    assert not is_open([weekend], at("2026-06-06T03:00"))


def test_without_windows_it_is_always_open() -> None:
    assert is_open([], 0.0)
    assert next_opening([], 5.0) == 5.0


@pytest.mark.parametrize("now", ["2026-06-01T12:00", "2026-10-24T12:00", "2026-03-28T12:00"])
def test_the_next_opening_is_open(now: str) -> None:
    when = next_opening([NIGHT], at(now))
    assert when is not None
    assert is_open([NIGHT], when)
    assert not is_open([NIGHT], when - 60)
    assert datetime.fromtimestamp(when, ZoneInfo(OSLO)).strftime("%H:%M") == "22:00"


def test_zones_are_those_of_the_database() -> None:
    assert check_zone(OSLO) == OSLO
    with pytest.raises(ValueError, match="did you mean `Europe/Oslo`"):
        check_zone("europe/oslo")
    with pytest.raises(ValueError, match="such as Europe/Oslo"):
        check_zone("../../etc/passwd")


def test_files_beside_the_zones_are_none() -> None:
    for name in ("posix/Europe/Oslo", "right/UTC", "posixrules", "Europe", "", "a\0b"):
        with pytest.raises(ValueError, match="is not a time zone"):
            check_zone(name)


def test_a_machine_without_the_database_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_known_zones", frozenset)
    with pytest.raises(ValueError, match="there is no time zone database here; install tzdata"):
        check_zone("Mars/Olympus")


@pytest.mark.parametrize("window", [NIGHT, Window(0, 24 * 60, "UTC", ("sat", "sun"))])
def test_a_window_is_written_as_it_is_read(window: Window) -> None:
    assert list(windows.window_faults(windows.write_window(window), "window")) == []
    assert windows.read_window(windows.write_window(window)) == window
