"""The log: to the journal as fields where systemd listens, elsewhere one line of ``key=value`` pairs on stderr.

A record is a sentence with fields: ``log.info("…", extra=fields(request=…, client=…))``. What people wrote to the model
and what it answered goes into ``private`` fields alone, which are filled only where the configuration says so; they
become journal fields of their own and never part of the message, so that what is read, sent or copied from the journal
in its usual forms does not hold them.

The journal's native protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

SOCKET = Path("/run/systemd/journal/socket")

MAX_VALUE_BYTES = 4096
"""Of one field; a datagram of ours stays far below what a UNIX socket takes (some 200 kB)."""

MAX_MESSAGE_BYTES = 32 << 10
"""A traceback, mostly."""

PER_SECOND = 5.0
BURST = 100.0
"""Lines of one kind: the unit lets 300 through in 30 s, and a kind that floods must not use up what others need."""

MAX_KINDS = 512
"""Kinds are the places in our code that log; more than this and the oldest is forgotten."""

PREFIX = "EDGE_"
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+\-]+")


def fields(private: Mapping[str, str] | None = None, **found: object) -> dict[str, Any]:
    """The ``extra`` of a record; None values are left out."""
    public = {name: str(value) for name, value in found.items() if value is not None}
    return {"edge_fields": public, "edge_private": dict(private or {})}


class RateLimit(logging.Filter):
    """Lets :data:`PER_SECOND` records of each kind through, after a burst, and says how many it did not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.name, record.levelno, str(record.msg)), self._clock()
        left, at, kept_back = self._kinds.pop(kind, (BURST, now, 0))
        left = min(BURST, left + (now - at) * PER_SECOND)
        passes = left >= 1.0
        if passes and kept_back:
            record.edge_fields = {**getattr(record, "edge_fields", {}), "suppressed": str(kept_back)}
        while len(self._kinds) >= MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        self._kinds[kind] = (left - 1.0 if passes else left, now, 0 if passes else kept_back + 1)
        return passes


def sentence(record: logging.LogRecord) -> str:
    """The message with its fields behind it."""
    found = getattr(record, "edge_fields", {})
    return " ".join([record.getMessage(), *(f"{name}={_quoted(value)}" for name, value in found.items())])


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    inner = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in inner) + '"'


class LineFormatter(logging.Formatter):
    """``time=… level=… component=… msg="…" key=value …``, one line a record whatever is in it (logfmt)."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "component": _component(record),
            "msg": _cut(record.getMessage(), MAX_MESSAGE_BYTES),
        }
        pairs |= getattr(record, "edge_fields", {})
        pairs |= {name: _cut(text, MAX_VALUE_BYTES) for name, text in getattr(record, "edge_private", {}).items()}
        if record.exc_info:
            pairs["traceback"] = _cut(self.formatException(record.exc_info), MAX_MESSAGE_BYTES)
        return " ".join(f"{name}={_quoted(value)}" for name, value in pairs.items())


class JournalHandler(logging.Handler):
    """Sends fields to the journal; what it does not take goes to ``fallback`` as a line, without private fields."""

    def __init__(self, path: Path = SOCKET, fallback: TextIO | None = None) -> None:
        super().__init__()
        self._fallback = fallback if fallback is not None else sys.stderr
        self._lines = LineFormatter()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._path = str(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.sendto(self.datagram(record), self._path)
        except OSError:
            record.edge_private = {}
            print(self._lines.format(record), file=self._fallback, flush=True)

    def datagram(self, record: logging.LogRecord) -> bytes:
        """The record in the native protocol."""
        text = sentence(record)
        if record.exc_info:
            text += "\n" + self._lines.formatException(record.exc_info)
        pairs = {
            "MESSAGE": _cut(text, MAX_MESSAGE_BYTES),
            "PRIORITY": str(next((number for level, number in _PRIORITIES if record.levelno >= level), 7)),
            "SYSLOG_IDENTIFIER": "edge-agent",
            f"{PREFIX}COMPONENT": _component(record),
        }
        for found in (getattr(record, "edge_fields", {}), getattr(record, "edge_private", {})):
            pairs |= {f"{PREFIX}{name.upper()}": _cut(value, MAX_VALUE_BYTES) for name, value in found.items()}
        return b"".join(_field(name, value) for name, value in pairs.items())

    def close(self) -> None:
        self._socket.close()
        super().close()


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _component(record: logging.LogRecord) -> str:
    return record.name.removeprefix("edge_agent").removeprefix(".") or "agent"


def _cut(text: str, limit: int) -> str:
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= limit else encoded[:limit].decode("utf-8", "ignore") + "…"


def listens(environment: Mapping[str, str], stderr: int = 2) -> bool:
    """Whether our stderr goes to the journal, as systemd says (``JOURNAL_STREAM``, see systemd.exec(5))."""
    try:
        facts = os.fstat(stderr)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def open_log(level: str, environment: Mapping[str, str] | None = None) -> None:
    """Send everything below the logger ``edge_agent`` from ``level`` on where it belongs."""
    handler: logging.Handler
    if listens(os.environ if environment is None else environment):
        handler = JournalHandler()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LineFormatter())
    handler.addFilter(RateLimit())
    logger = logging.getLogger("edge_agent")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
