"""Times in UTC as RFC 3339 writes them."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime

LAST_YEAR = 9000
"""Of times that are waited for: there have to be days after them."""

_FORM = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|\+00:00)", re.ASCII)


def parse_utc(text: str) -> float:
    """Unix seconds.

    Raises:
        ValueError: it is no time in UTC.
    """
    if _FORM.fullmatch(text):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(text.upper()).astimezone(UTC)
            if found.year <= LAST_YEAR:
                return found.timestamp()
    raise ValueError(f"{text[:40]!r} is not a time in UTC: write it as 2026-12-01T02:00:00Z")


def format_utc(seconds: float) -> str:
    """What :func:`parse_utc` reads, in whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
