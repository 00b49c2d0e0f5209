"""Which time expiry is judged by, on devices whose clock may stand at 1970 or run years ahead for an hour."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from datetime import UTC, datetime

from contract.trust.rollback_floor import RollbackFloor

EARLIEST = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
"""This code did not exist before; raised with every release."""

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def effective_time(
    clock: Callable[[], datetime], floor: RollbackFloor, synchronised: Callable[[], bool] = lambda: False
) -> datetime:
    """The later one of the clock and its floor. Only a synchronised clock raises the floor.

    A clock that is years ahead therefore refuses for as long as it is ahead, and no longer.
    """
    now = clock().astimezone(UTC)
    if synchronised():
        floor.raise_clock_floor(int(now.timestamp()))
    return max(now, datetime.fromtimestamp(max(EARLIEST, floor.clock_floor()), UTC))


def kernel_clock_synchronised() -> bool:
    """Whether the kernel says that NTP or PTP disciplines its clock (adjtimex(2)); False if it cannot tell."""
    try:
        # struct timex is at most 208 bytes on Linux; modes = 0 only reads.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return False
    return 0 <= int(state) < _TIME_ERROR
