"""Waiting for what a service does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

SECONDS = 90.0


def until(look: Callable[[], _T], what: str, seconds: float = SECONDS) -> _T:
    """The first true thing that ``look`` sees.

    Raises:
        AssertionError: it does not come.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: did not happen within {seconds:.0f} s")
