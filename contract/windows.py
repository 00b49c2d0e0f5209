"""Maintenance windows in IANA time zones, of fleets and of devices. Clocks of zones change, so they are looked up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, available_timezones

from msgspec import Meta, Struct, field

from contract.errors import Fault
from contract.schema_faults import nearest

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

MAX_WINDOWS = 64

_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")

_NO_ZONE = ("posix/", "right/", "posixrules", "localtime")
"""Files beside the zones of the database, that are none."""


class WindowDocument(Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "until"}):
    """A window as it is written: ``from`` 22:00 ``until`` 05:00 in ``zone``, on the ``days`` on which it begins."""

    start: str
    end: str
    zone: str
    days: Annotated[list[Day], Meta(min_length=1)] = field(default_factory=lambda: list(DAYS))


class Window(Struct, frozen=True):
    """From ``start`` to ``end``, minutes after midnight in ``zone``; over midnight where the end is earlier.

    ``days`` are those on which it begins.
    """

    start: int
    end: int
    zone: str
    days: tuple[Day, ...] = DAYS


def parse_time(text: str, *, end: bool = False) -> int:
    """Minutes after midnight; with ``end``, 24:00 is the end of the day.

    Raises:
        ValueError: it is not HH:MM.
    """
    if end and text == "24:00":
        return 24 * 60
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:20]!r} is not a time of day: write it as HH:MM, from 00:00 to 23:59")
    return int(match[1]) * 60 + int(match[2])


def check_zone(name: str) -> str:
    """``name``, if it is a time zone.

    Raises:
        ValueError: it is none.
    """
    if _is_zone(name):
        return name
    known = _known_zones()
    if not known:
        raise ValueError(f"{name[:64]!r} cannot be looked up: there is no time zone database here; install tzdata")
    by_lower = {each.lower(): each for each in known}
    near = by_lower.get(nearest(name, sorted(by_lower)) or "")
    hint = "" if near is None else f"; did you mean `{near}`?"
    raise ValueError(f"{name[:64]!r} is not a time zone of the IANA database, such as Europe/Oslo{hint}")


def _is_zone(name: str) -> bool:
    if not name or name.startswith(_NO_ZONE):
        return False
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        return False
    return True


@cache
def _known_zones() -> frozenset[str]:
    """For hints: some hundred files are looked at."""
    return frozenset(available_timezones())


def window_faults(window: WindowDocument, path: str) -> Iterator[Fault]:
    """What is wrong with a window, beside its shape."""
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("from", lambda: parse_time(window.start)),
        ("until", lambda: parse_time(window.end, end=True)),
        ("zone", lambda: check_zone(window.zone)),
    )
    for name, check in checks:
        try:
            check()
        except ValueError as error:
            yield Fault(f"{path}.{name}", str(error))
    if window.start == window.end:
        yield Fault(f"{path}.until", "the window is never open: it ends when it begins")


def read_window(document: WindowDocument) -> Window:
    """A window without :func:`window_faults`."""
    start, end = parse_time(document.start), parse_time(document.end, end=True)
    return Window(start, end, document.zone, tuple(document.days))


def write_window(window: Window) -> WindowDocument:
    """The document that :func:`read_window` reads."""
    return WindowDocument(_clock(window.start), _clock(window.end), window.zone, list(window.days))


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def is_open(windows: Sequence[Window], now: float) -> bool:
    """Whether one of ``windows`` is open; without any it always is. ``now`` in Unix seconds."""
    return not windows or any(_is_open(window, now) for window in windows)


def _is_open(window: Window, now: float) -> bool:
    local = datetime.fromtimestamp(now, ZoneInfo(window.zone))
    minute = local.hour * 60 + local.minute
    if window.start < window.end:
        return DAYS[local.weekday()] in window.days and window.start <= minute < window.end
    # Over midnight: it began today, or yesterday.
    if minute >= window.start:
        return DAYS[local.weekday()] in window.days
    return minute < window.end and DAYS[(local.weekday() - 1) % 7] in window.days


def next_opening(windows: Sequence[Window], now: float, *, horizon_days: int = 8) -> float | None:
    """When one opens next (now, if one is open); None if none does within ``horizon_days``."""
    if is_open(windows, now):
        return now
    # Openings are whole minutes of local time, which are whole minutes of UTC in all zones of today.
    at = datetime.fromtimestamp(now, UTC).replace(second=0, microsecond=0)
    candidates: list[float] = []
    for window in windows:
        zone = ZoneInfo(window.zone)
        for day in range(-1, horizon_days):
            local = (at.astimezone(zone) + timedelta(days=day)).replace(
                hour=window.start // 60, minute=window.start % 60, fold=0
            )
            when = local.timestamp()
            if when > now and is_open([window], when):
                candidates.append(when)
    return min(candidates, default=None)
