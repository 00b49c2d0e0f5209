"""What the service manager hears from us: ready, what we are doing, that we still make progress, that we are ending.

The protocol is that of sd_notify(3): one datagram of ``KEY=value`` lines to the socket named in ``NOTIFY_SOCKET``.
Without a service manager every call does nothing, so that callers need not ask.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

MAX_STATUS_BYTES = 1024
"""systemd refuses datagrams beyond its page; one line of ``systemctl status`` is far below."""

FEEDS_PER_SILENCE = 4
"""Twice would be enough by the book; a busy box may be late once."""

SEND_SECONDS = 1.0
"""The manager reads its socket at once; were it stuck, we would rather go on than hang with it."""


class Notifier:
    """Sends to the manager that started this process, or to nobody.

    ``watchdog_seconds`` is how long the manager waits for :meth:`progress` before it kills us (None: not at all);
    call it at least twice in that time, and only while the work that matters really goes on. The connection is made
    once, so that a process may give up the right to make others.
    Every method says whether the datagram was handed over; none raises.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        # A leading @ stands for the null byte of Linux's abstract name space.
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address or None
        self._connection: socket.socket | None = None
        self._fed = 0.0

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """The manager named in ``environment``, whose variables are taken out: children must not speak for us."""
        environment = os.environ if environment is None else environment
        address = environment.pop("NOTIFY_SOCKET", None)
        seconds = _watchdog_seconds(environment)
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environment.pop(name, None)
        return cls(address, seconds)

    def ready(self, status: str = "") -> bool:
        """Start-up is complete."""
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for ``systemctl status``; line breaks become blanks, an overlong line is cut."""
        return self._send(*(_status(text) or ["STATUS="]))

    def progress(self) -> bool:
        """The work goes on: feeds the watchdog."""
        return self._send("WATCHDOG=1")

    def keep_alive(self) -> float | None:
        """Feed the watchdog if it is time to; the seconds until this wants to be called again, None without one."""
        if self.watchdog_seconds is None:
            return None
        rest = self.watchdog_seconds / FEEDS_PER_SILENCE
        if time.monotonic() - self._fed >= rest:
            self._fed = time.monotonic()
            self.progress()
        return rest

    def allow_silence(self, seconds: float) -> bool:
        """From now on the watchdog waits ``seconds``: a load that takes minutes announces itself before it starts."""
        self.watchdog_seconds = seconds
        return self._send(f"WATCHDOG_USEC={int(seconds * 1_000_000)}", "WATCHDOG=1")

    def stopping(self, status: str = "") -> bool:
        """We are ending on purpose."""
        return self._send("STOPPING=1", *_status(status))

    def _send(self, *lines: str) -> bool:
        if self._address is None:
            return False
        with contextlib.suppress(OSError):
            if self._connection is None:
                self._connection = _connect(self._address)
            self._connection.send("\n".join(lines).encode())
            return True
        return False


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        connection.settimeout(SEND_SECONDS)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _status(text: str) -> list[str]:
    line = " ".join(text.split())
    encoded = line.encode()[:MAX_STATUS_BYTES]
    return [f"STATUS={encoded.decode(errors='ignore')}"] if line else []


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """The manager's interval; None when it watches another process (``WATCHDOG_PID``) or nobody."""
    pid = environment.get("WATCHDOG_PID", "")
    usec = environment.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1_000_000
