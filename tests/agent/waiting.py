"""Waiting for something that nobody announces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 120.0


async def until(holds: Callable[[], bool]) -> None:
    """Look in the running loop until ``holds``.

    Raises:
        TimeoutError: it did not within ``PATIENCE`` seconds.
    """
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.005)
