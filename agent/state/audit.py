"""``audit.jsonl``: every decision about trust that this device took, one JSON object a line, for whoever asks later.

Two processes write it, the agent and its installer. A line is flushed before the decision it tells of takes effect
where that matters (what is accepted); a line that a power cut left half written is ended by the next one. Full files
are rotated, the oldest is removed: the log takes :data:`MAX_BYTES` times :data:`FILES` at most.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from agent.clock import utc_now
from contract.errors import EdgeBundleError, StoreBroken, StoreFull
from contract.system.durable import Disk, translate
from contract.system.file_lock import wait_for_lock

log = logging.getLogger("edge_agent.audit")

MAX_BYTES = 1 << 20
"""About 3,000 decisions; a device takes a few a day."""

FILES = 4

AUDITED_REFUSALS = 30
"""Refusals written down at once: more than an operator causes in an hour of trying."""

AUDITED_REFUSALS_SECONDS = 1200.0
"""Then one in this time: at 300 bytes the log holds half a year of them."""

MAX_TEXT = 1000
"""Messages may quote what came from outside."""

By = Literal["agent", "installer", "operator"]

Decision = Literal[
    "accepted",  # signed metadata lists the bundle, and this device may run it
    "refused",
    "committed",  # it is active now; the security epoch rose to its own
    "rolled_back",
    "warned",  # something installed, or the metadata, is not as it should be any more
    "replaced",  # a revoked bundle was taken out of service
    "provisioned",
    "reprovisioned",
    "epoch_lowered",
    "clock_floor_reset",
]


class Entry(Struct, frozen=True, omit_defaults=True):
    """One decision; ``at`` is UTC by this device's clock, ``by`` who took it."""

    at: str
    by: By
    decision: Decision
    bundle: str | None = None
    digest: str | None = None
    security_epoch: int | None = None
    revision: str | None = None
    reason: str | None = None
    message: str | None = None
    field: str | None = None


class AuditLog:
    """The log at ``path``; may be used by several processes at once. ``now`` gives the time in UTC."""

    def __init__(self, path: Path, disk: Disk, by: By, now: Callable[[], datetime] = utc_now) -> None:
        self._now = now
        self._path = path
        self._disk = disk
        self._by: By = by

    def record(
        self,
        decision: Decision,
        *,
        bundle: str | None = None,
        digest: str | None = None,
        security_epoch: int | None = None,
        revision: str | None = None,
        error: EdgeBundleError | None = None,
        reason: str | None = None,
        message: str | None = None,
        field: str | None = None,
        by: By | None = None,
    ) -> None:
        """Write it down, durably; ``by`` if it was decided by somebody else than the one who writes.

        Raises:
            StoreBroken, StoreFull.
        """
        entry = Entry(
            at=self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            by=by or self._by,
            decision=decision,
            bundle=bundle,
            digest=digest,
            security_epoch=security_epoch,
            revision=revision,
            reason=str(error.reason) if error is not None and error.reason else reason,
            message=(error.message if error is not None else message or "")[:MAX_TEXT] or None,
            field=((error.field if error is not None else field) or "")[:MAX_TEXT] or None,
        )
        line = msgspec.json.encode(entry) + b"\n"
        with self._alone():
            size = self._size()
            if size + len(line) > MAX_BYTES and size:
                self._rotate()
            elif size and not self._ends_a_line(size):
                line = b"\n" + line
            self._disk.append(self._path, line)

    def knows(self, decision: Decision, digest: str) -> bool:
        """Whether that was written down before, and is still in the log.

        Raises:
            StoreBroken.
        """
        return any(entry.decision == decision and entry.digest == digest for entry in read_audit(self._path))

    def note(self, decision: Decision, **details: object) -> None:
        """As :meth:`record`, where the decision stands whether or not it can be written down: a full disk must not
        turn a refusal into anything else.
        """
        try:
            self.record(decision, **details)  # type: ignore[arg-type]  # the same keywords
        except (StoreBroken, StoreFull) as error:
            log.warning("audit.jsonl cannot be written: %s", error.message)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, by a lock on the directory: the file itself is renamed away now and then."""
        try:
            handle = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise translate(error, f"opening {self._path.parent}") from error
        try:
            wait_for_lock(handle)
            yield
        finally:
            os.close(handle)

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise translate(error, f"looking at {self._path}") from error

    def _ends_a_line(self, size: int) -> bool:
        try:
            with self._path.open("rb") as file:
                file.seek(size - 1)
                return file.read(1) == b"\n"
        except OSError as error:
            raise translate(error, f"reading {self._path}") from error

    def _rotate(self) -> None:
        for number in range(FILES - 2, -1, -1):
            older = rotated(self._path, number)
            if older.exists():
                self._disk.rename(older, rotated(self._path, number + 1))


class AuditRateLimiter:
    """How many decisions that a broker causes may be written down, so that it cannot wash the rest out of the log.

    What is accepted for the first time is written down in any case: nothing becomes active that is not in the log.

    :data:`AUDITED_REFUSALS` at once, then one every :data:`AUDITED_REFUSALS_SECONDS`: an endless flood fills the log in
    half a year.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(AUDITED_REFUSALS)
        self._at = clock()
        self._suppressed = 0

    def suppressed(self) -> int | None:
        """How many were not written down since the last one that was; None when the next one is not to be, either."""
        now = self._clock()
        self._left = min(float(AUDITED_REFUSALS), self._left + (now - self._at) / AUDITED_REFUSALS_SECONDS)
        self._at = now
        return self._suppressed if self._left >= 1 else None

    def consume(self) -> None:
        """A decision was taken, and written down or not as :meth:`suppressed` said."""
        if self.suppressed() is None:
            self._suppressed += 1
        else:
            self._left -= 1
            self._suppressed = 0


def suppressed_text(count: int) -> str:
    """What the message of a refusal ends with when ``count`` before it were not written down."""
    return f" (and {count} more since the last entry)" if count else ""


def rotated(path: Path, number: int) -> Path:
    """The name of the file that was rotated ``number`` times; 0 is the one being written."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def read_audit(path: Path) -> list[Entry]:
    """Every entry that is kept, the oldest first; lines that a power cut spoiled are left out.

    Raises:
        StoreBroken: a file cannot be read.
    """
    found: list[Entry] = []
    for number in range(FILES - 1, -1, -1):
        try:
            with rotated(path, number).open("rb") as file:
                # A file of ours is never larger; of another one, as much as that.
                lines = file.read(2 * MAX_BYTES).splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreBroken(f"{path} cannot be read: {error.strerror}") from error
        for line in lines:
            try:
                found.append(msgspec.json.decode(line, type=Entry))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
    return found
