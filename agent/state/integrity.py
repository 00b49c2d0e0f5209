"""Rows of ``state.db`` that cannot be what we wrote: set aside when the file is opened, so that the rest goes on.

A flash disk that ages, a tool that edits, an agent of another version leave values that no reader expects, and one row
that cannot be restored would end every start. Each row is held against what its columns may hold; one that does not fit
goes to the table ``set_aside`` with the reason, without the texts of prompts and answers. Bundles are read anew from
their manifests, whose digests are their names.

What trust may never fall below is not mended: while such a value is among :data:`FLOORS` that were set aside, nothing
is installed until the operator provisions trust once more. What is active serves.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.state.layout import StateDirectory
from contract.bundle.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, parse_manifest
from contract.errors import BundleRefused
from contract.identifiers import Digest, check_bundle_name, check_version, is_identifier
from contract.mqtt.messages import MAX_DESIRED_BYTES, Phase
from contract.reasons import Reason

SET_ASIDE = """
CREATE TABLE set_aside (
    number INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    reason TEXT NOT NULL,
    content TEXT NOT NULL,
    at INTEGER NOT NULL,
    told INTEGER NOT NULL DEFAULT 0
) STRICT
"""

MAX_KEPT = 100
"""Rows that are kept for diagnosis; marks of floors are kept in any case, one of each."""

KEEP_SECONDS = 7 * 86400
"""How long; so long a warning lasts."""

MAX_CONTENT = 2000
"""Characters of a row that are kept."""

YEAR_9999 = 253_402_300_799
"""The last second that a date can name."""

EPOCH = "installation.epoch"

FLOORS = ("role_versions", EPOCH, "installation.clock_floor")

UNKNOWN = "set_aside"
"""A row about such rows that cannot be read itself: it may have been about a floor."""

# As contract.trust.store counts them: those of an era of keys stand apart.
_ROLE = re.compile(r"(?:root|timestamp|snapshot|targets)(?:@[0-9a-f]{16})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class SetAside(Struct, frozen=True):
    """``source``: the table, and the column where only that was replaced; ``at``: Unix seconds."""

    source: str
    reason: str
    at: int


class UndecodableText(Struct, frozen=True):
    """Bytes that are stored as a text, and are none."""

    data: bytes


Check = Callable[[Any], bool]


def _whole(minimum: int, maximum: int) -> Check:
    return lambda value: type(value) is int and minimum <= value <= maximum


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < 1e15


def _text(maximum: int) -> Check:
    return lambda value: isinstance(value, str) and len(value) <= maximum and "\0" not in value


def _bytes(maximum: int) -> Check:
    return lambda value: isinstance(value, bytes) and len(value) <= maximum


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _digest(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _passes(check: Callable[[str], str], *, empty: bool = False) -> Check:
    def passes(value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:
            return (empty and not value) or bool(check(value))
        except BundleRefused:
            return False

    return passes


_TIME = _whole(0, YEAR_9999)
_FLAG = _whole(0, 1)
_REASON: Check = lambda value: isinstance(value, str) and value in set(Reason)  # noqa: E731 # one of many alike
_PHASES = frozenset(Phase.__args__)  # type: ignore[attr-defined] # of a Literal

TABLES: Mapping[str, Mapping[str, Check]] = {
    "bundles": {
        "digest": _digest,
        "name": _passes(check_bundle_name),
        "version": _passes(check_version),
        "security_epoch": _whole(0, 2**63 - 1),
        "bytes": _whole(0, 2**53),
        "installed_at": _TIME,
        "tokens_per_second": _or_none(_number),
        "tokens_per_second_each": _or_none(_number),
    },
    "adapters": {"digest": _digest, "base": _digest, "committed": _FLAG},
    "history": {"number": _whole(1, 2**53), "digest": _digest, "undone": _FLAG},
    "attempts": {"digest": _digest, "count": _whole(0, 1_000_000)},
    "quarantine": {
        "digest": _digest,
        "name": _passes(check_bundle_name, empty=True),
        "version": _passes(check_version, empty=True),
        "reason": _REASON,
        "message": _text(100_000),
        "at": _TIME,
    },
    "swaps": {"at": _TIME, "digest": _digest},
    "warnings": {
        "reason": _REASON,
        "digest": lambda value: value == "" or _digest(value),
        "message": _text(100_000),
        "at": _TIME,
    },
    "role_versions": {
        "role": lambda value: isinstance(value, str) and _ROLE.fullmatch(value) is not None,
        "version": _whole(0, 2**63 - 1),
    },
    "metadata_expiry": {"role": _text(64), "at": _whole(0, 2**63 - 1)},
    "set_aside": {
        "number": _whole(1, 2**53),
        "source": _text(64),
        "reason": _text(1000),
        "content": _text(2 * MAX_CONTENT),
        "at": _TIME,
        "told": _FLAG,
    },
}  # fmt: skip
"""What the columns of every table may hold, but for those of :data:`_INSTALLATION` and of the answers."""

_INSTALLATION: Mapping[str, tuple[Check, object]] = {
    "phase": (lambda value: value in _PHASES, "IDLE"),
    "active": (_or_none(_digest), None),
    "previous": (_or_none(_digest), None),
    "candidate": (_or_none(_digest), None),
    "failure_reason": (_or_none(_REASON), None),
    "failure_message": (_or_none(_text(100_000)), None),
    "desired": (_or_none(_bytes(MAX_DESIRED_BYTES)), None),
    "overridden": (_FLAG, 0),
    "epoch": (_whole(0, 2**63 - 1), 0),
    "clock_floor": (_TIME, 0),
}
"""Of the one row: what a column may hold, and what it gets when it does not."""


def repair(connection: sqlite3.Connection, directory: StateDirectory) -> bool:
    """Set aside what cannot be read; whether there was anything. Run it in a transaction, foreign keys unchecked.

    Raises:
        sqlite3.Error: a table cannot be read at all.
    """
    return _Repair(connection, directory).run()


def is_intact(connection: sqlite3.Connection) -> bool:
    """Whether there is nothing to :func:`repair`; changes nothing."""
    return not (
        any(_faults(connection, table) for table in TABLES)
        or _installation_faults(connection)
        or any(not _whole(0, 2**53)(row["seq"]) for row in rows_of(connection, "SELECT seq FROM sqlite_sequence"))
    )


def forget_floors(connection: sqlite3.Connection, *sources: str) -> None:
    """The operator has said what they are from now on."""
    locations = ", ".join("?" * len(sources))
    connection.execute(f"DELETE FROM set_aside WHERE source IN ({locations})", sources)  # noqa: S608 # placeholders only


def note(connection: sqlite3.Connection, source: str, reason: str, row: Mapping[str, object]) -> None:
    """Keep a row for diagnosis."""
    content = json.dumps({name: _shown(value) for name, value in row.items()})[:MAX_CONTENT]
    now = int(time.time())
    if source in (*FLOORS, UNKNOWN):
        connection.execute("DELETE FROM set_aside WHERE source = ?", (source,))
    connection.execute(
        "INSERT INTO set_aside (source, reason, content, at) VALUES (?, ?, ?, ?)", (source, reason[:1000], content, now)
    )
    kept = ", ".join("?" * (len(FLOORS) + 1))
    connection.execute(
        f"DELETE FROM set_aside WHERE source NOT IN ({kept}) AND (at < ? OR number NOT IN "  # noqa: S608 # placeholders
        "(SELECT number FROM set_aside ORDER BY number DESC LIMIT ?))",
        (*FLOORS, UNKNOWN, now - KEEP_SECONDS, MAX_KEPT),
    )


def _shown(value: object) -> object:
    if isinstance(value, UndecodableText):
        value = value.data
    if isinstance(value, bytes):
        return f"{len(value)} bytes, {value[:32].hex()}"
    return value[:200] if isinstance(value, str) else value


def rows_of(connection: sqlite3.Connection, select: str) -> Iterator[dict[str, object]]:
    """Rows; what is a text and no UTF-8 comes as :class:`UndecodableText`."""
    before = connection.text_factory

    def lenient(data: bytes) -> str | UndecodableText:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return UndecodableText(data)

    connection.text_factory = lenient
    try:
        cursor = connection.execute(select)
        names = [each[0] for each in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    finally:
        connection.text_factory = before
    yield from found


def _faults(connection: sqlite3.Connection, table: str) -> list[tuple[dict[str, object], str]]:
    """Rows of ``table`` that cannot be read, each with the column that says so."""
    found = []
    for row in rows_of(connection, f"SELECT rowid AS rowid_, * FROM {table}"):  # noqa: S608 # our own names
        wrong = next((name for name, check in TABLES[table].items() if not check(row.get(name))), None)
        if wrong is not None:
            found.append((row, wrong))
    return found


def _installation_faults(connection: sqlite3.Connection) -> list[str]:
    rows = list(rows_of(connection, "SELECT * FROM installation"))
    if len(rows) != 1:
        return ["only"]
    wrong = [name for name, (check, _) in _INSTALLATION.items() if not check(rows[0][name])]
    known = {row["digest"] for row in rows_of(connection, "SELECT digest FROM bundles")}
    return wrong + [name for name in ("active", "previous") if rows[0][name] is not None and rows[0][name] not in known]


class _Repair:
    def __init__(self, connection: sqlite3.Connection, directory: StateDirectory) -> None:
        self._connection = connection
        self._directory = directory
        self._count = 0
        self._lost_active = False

    def run(self) -> bool:
        self._repair_marks()
        for table in TABLES:
            for row, column in _faults(self._connection, table):
                self._set_aside(table, row, column)
        self._restore_bundles()
        for table in ("adapters", "history"):
            self._connection.execute(f"DELETE FROM {table} WHERE digest NOT IN (SELECT digest FROM bundles)")  # noqa: S608
        self._number_history()
        self._repair_installation()
        return self._count > 0

    def _repair_marks(self) -> None:
        """First of all: what cannot be read of this table may have been about a floor."""
        for row, column in _faults(self._connection, "set_aside"):
            self._connection.execute("DELETE FROM set_aside WHERE rowid = ?", (row["rowid_"],))
            self._note(UNKNOWN, f"{column} cannot be read", row)

    def _note(self, source: str, reason: str, row: Mapping[str, object]) -> None:
        self._count += 1
        note(self._connection, source, reason, row)

    def _set_aside(self, table: str, row: dict[str, object], column: str) -> None:
        if table == "bundles" and (found := self._bundle_on_disk(row["digest"])) is not None:
            self._note(table, f"{column} cannot be read; it was taken from the manifest", row)
            self._connection.execute("DELETE FROM bundles WHERE rowid = ?", (row["rowid_"],))
            self._add_bundle(found)
            return
        self._connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (row["rowid_"],))  # noqa: S608 # our own names
        self._note(table, f"{column} cannot be read", row)

    def _bundle_on_disk(self, digest: object) -> tuple[object, ...] | None:
        """The row of a sealed bundle, from its manifest."""
        if not _digest(digest):
            return None
        location: Path = self._directory.bundle(Digest(str(digest)))
        try:
            with (location / MANIFEST_FILE).open("rb") as file:
                stored = file.read(MAX_MANIFEST_BYTES + 1)
            installed_at = max(0, int(location.stat().st_mtime))
            if hashlib.sha256(stored).hexdigest() != digest:
                return None
            manifest = parse_manifest(stored)
        except (OSError, BundleRefused):
            return None
        size = sum(entry.size for entry in manifest.files)
        return digest, manifest.name, manifest.version, manifest.security_epoch, size, installed_at

    def _add_bundle(self, row: tuple[object, ...]) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO bundles (digest, name, version, security_epoch, bytes, installed_at) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )

    def _restore_bundles(self) -> None:
        """Bundles that something refers to, that lie on the disk, and whose rows are gone."""
        wanted = {row["digest"] for row in rows_of(self._connection, "SELECT digest FROM history")}
        for row in rows_of(self._connection, "SELECT active, previous FROM installation"):
            wanted |= {row["active"], row["previous"]}
        known = {row["digest"] for row in rows_of(self._connection, "SELECT digest FROM bundles")}
        for digest in wanted - known:
            found = self._bundle_on_disk(digest)
            if found is not None:
                self._note("bundles", "it was missing; it was taken from the manifest", {"digest": digest})
                self._add_bundle(found)

    def _number_history(self) -> None:
        """Its numbers go on from the highest one that was ever given: one too high would be the last."""
        self._connection.execute("DELETE FROM sqlite_sequence WHERE name = 'history'")
        self._connection.execute(
            "INSERT INTO sqlite_sequence (name, seq) SELECT 'history', coalesce(max(number), 0) FROM history"
        )

    def _repair_installation(self) -> None:
        rows = list(rows_of(self._connection, "SELECT rowid AS rowid_, * FROM installation"))
        if len(rows) != 1:
            self._connection.execute("DELETE FROM installation")
            self._connection.execute(
                "INSERT INTO installation (only, phase, epoch, clock_floor) VALUES (1, 'IDLE', 0, 0)"
            )
            self._lost_active = True
            for floor in FLOORS[1:]:
                self._note(floor, f"{len(rows)} rows in place of one", {})
            rows = list(rows_of(self._connection, "SELECT rowid AS rowid_, * FROM installation"))
        (row,) = rows
        for name in _installation_faults(self._connection):
            default = _INSTALLATION[name][1]
            self._lost_active = self._lost_active or name == "active"
            if name == "epoch":
                # Not lower than what is here; what it was is not known.
                (default,) = self._connection.execute("SELECT coalesce(max(security_epoch), 0) FROM bundles").fetchone()
            self._note(f"installation.{name}", "it cannot be read", {name: row[name]})
            self._connection.execute(f"UPDATE installation SET {name} = ?", (default,))  # noqa: S608 # our own names
        # A failure is told by both, or not at all.
        self._connection.execute(
            "UPDATE installation SET failure_reason = NULL, failure_message = NULL "
            "WHERE failure_reason IS NULL OR failure_message IS NULL"
        )
        if self._lost_active:
            self._connection.execute(_CHOOSE_ACTIVE)


_CHOOSE_ACTIVE = """
UPDATE installation SET active = (
    SELECT history.digest FROM history JOIN bundles USING (digest)
    WHERE NOT undone AND security_epoch >= epoch AND history.digest NOT IN (SELECT digest FROM adapters)
    AND history.digest NOT IN (SELECT digest FROM quarantine)
    AND history.digest NOT IN (SELECT digest FROM warnings WHERE reason = 'revoked')
    ORDER BY history.number DESC LIMIT 1
) WHERE active IS NULL
"""
"""Where the active bundle is not known any more: the last one that became active and may be gone back to."""


ANSWERS_FIT = (
    "typeof(client) = 'text' AND length(client) BETWEEN 1 AND 64 AND client NOT GLOB '*[^A-Za-z0-9_.-]*' "
    "AND length(CAST(client AS BLOB)) = length(client) "
    "AND typeof(id) = 'text' AND length(id) BETWEEN 1 AND 64 AND id NOT GLOB '*[^A-Za-z0-9_.-]*' "
    "AND length(CAST(id AS BLOB)) = length(id) "
    "AND typeof(fingerprint) = 'text' AND length(CAST(fingerprint AS BLOB)) = length(fingerprint) "
    "AND length(fingerprint) BETWEEN 1 AND 128 AND fingerprint NOT GLOB '*[^0-9A-Za-z]*' "
    "AND typeof(state) = 'integer' AND state BETWEEN 0 AND 4 "
    "AND typeof(attempt) = 'integer' AND attempt BETWEEN 1 AND 1000000 "
    "AND typeof(accepted_at) IN ('real', 'integer') AND accepted_at BETWEEN 0 AND 253402300799 "
    "AND (deadline_at IS NULL OR typeof(deadline_at) IN ('real', 'integer') AND deadline_at BETWEEN 0 AND 1e15) "
    "AND typeof(changed_at) IN ('real', 'integer') AND changed_at BETWEEN 0 AND 253402300799 "
    "AND (correlation IS NULL OR typeof(correlation) = 'blob' AND length(correlation) <= 65535) "
    "AND (request IS NULL OR typeof(request) = 'blob' AND length(request) <= 1048576) "
    "AND (last IS NULL OR typeof(last) = 'blob' AND length(last) <= 16777216) "
    "AND typeof(delivered) = 'integer' AND delivered BETWEEN 0 AND 1"
)
"""What a row of the ledger may hold."""


_UNFIT_ANSWERS = (
    "SELECT rowid AS rowid_, client, id, typeof(fingerprint) AS fingerprint, state, attempt, accepted_at, deadline_at, "
    "changed_at, typeof(correlation) AS correlation, typeof(request) AS request, typeof(last) AS last, delivered "
    "FROM answers WHERE (" + ANSWERS_FIT + ") IS NOT 1 LIMIT 1000"
)
"""Without the texts of prompts and answers: of those only what they are."""


class Lost(Struct, frozen=True):
    """A request of the ledger that was set aside; its sender may wait for an answer."""

    client: str
    id: str


def repair_answers(connection: sqlite3.Connection) -> list[Lost]:
    """Set aside the rows of the ledger that cannot be read; those among them whose sender can be told."""
    lost = []
    while rows := list(rows_of(connection, _UNFIT_ANSWERS)):
        for row in rows:
            client, request = row["client"], row["id"]
            if (
                isinstance(client, str)
                and isinstance(request, str)
                and is_identifier(client)
                and is_identifier(request)
            ):
                lost.append(Lost(client, request))
            connection.execute("DELETE FROM answers WHERE rowid = ?", (row.pop("rowid_"),))
            note(connection, "answers", "a column cannot be read", row)
    return lost[:MAX_KEPT]
