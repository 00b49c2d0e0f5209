"""Durations as operators write them: ``90s``, ``30m``, ``2h``, ``7d``."""

from __future__ import annotations

import re

_FORM = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

MAX_SECONDS = 366 * 86400.0
"""A year: a rollout that waits longer was forgotten."""


def parse_duration(text: str) -> float:
    """Seconds.

    Raises:
        ValueError: it is none; the message says how to write one.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a duration: write 90s, 30m, 2h or 7d")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_SECONDS:
        raise ValueError(f"{text[:40]!r} is longer than a year")
    return seconds


def describe_duration(seconds: float) -> str:
    """In the largest unit that shows it: ``1.5 h``."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
