"""Giving up on a server that stalls or drips, without holding the consumer's own slowness against it."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from contract.errors import SourceUnavailable
from contract.reasons import Reason


class ThroughputGuard(Struct, frozen=True):
    """How slow a server may be.

    ``min_bytes_per_second`` is the average over ``window_seconds`` of waiting: one kilobyte a second is what a poor
    cellular link still does, and a dripping server keeps a device busy for years below it.
    """

    connect_seconds: float = 10.0
    read_seconds: float = 20.0
    window_seconds: float = 30.0
    min_bytes_per_second: float = 1024.0


class Allowance(Struct):
    """Bytes that the server may still send before somebody has to ask for more: header lines, interim answers and
    chunk trailers would otherwise have no end."""

    left: int = 2**18


class PacedReader(io.RawIOBase):
    """Reads from ``connection`` and watches the pace; only the time spent waiting for the server counts."""

    def __init__(
        self,
        connection: socket.socket,
        pace: ThroughputGuard,
        allowance: Allowance,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._connection = connection
        # Keeps the connection open when http.client closes it after reading the head of a last response.
        self._raw = connection.makefile("rb", buffering=0)
        self._pace = pace
        self._allowance = allowance
        self._clock = clock
        self._waited = 0.0
        self._received = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """As the operating system's ``recv_into``.

        Raises:
            SourceUnavailable: SOURCE_TOO_SLOW, or more than was asked for.
            OSError: broken connection.
        """
        if self._allowance.left <= 0:
            raise SourceUnavailable("the server sends more than was asked for")
        # Not cut short at the end of a window: the read that happens to lie across it would always be given up on.
        self._connection.settimeout(self._pace.read_seconds)
        before = self._clock()
        try:
            count = self._raw.readinto(buffer) or 0
        except TimeoutError as error:
            raise SourceUnavailable("the server stalled", reason=Reason.SOURCE_TOO_SLOW) from error
        self._waited += self._clock() - before
        self._received += count
        self._allowance.left -= count
        if self._waited >= self._pace.window_seconds:
            if count and self._received < self._pace.min_bytes_per_second * self._waited:
                raise SourceUnavailable(
                    f"the server sent {self._received} bytes in {self._waited:.0f} s", reason=Reason.SOURCE_TOO_SLOW
                )
            self._waited = 0.0
            self._received = 0
        return count


class PacedSocket:
    """What :mod:`http.client` needs of a socket to read one response from it."""

    def __init__(self, connection: socket.socket, pace: ThroughputGuard, allowance: Allowance) -> None:
        self._connection = connection
        self._pace = pace
        self._allowance = allowance

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        """The response to read, as :mod:`http.client` calls for it."""
        return io.BufferedReader(PacedReader(self._connection, self._pace, self._allowance), 2**16)
