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
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from agent.state.columns import INSTALLATION, MAX_CONTENT, TABLES, UndecodableText, is_digest, whole_number
from agent.state.layout import StateDirectory
from contract.bundle.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, parse_manifest
from contract.errors import BundleRefused
from contract.identifiers import Digest

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

EPOCH = "installation.epoch"

FLOORS = ("role_versions", EPOCH, "installation.clock_floor")

UNKNOWN = "set_aside"
"""A row about such rows that cannot be read itself: it may have been about a floor."""


class SetAside(Struct, frozen=True):
    """``source``: the table, and the column where only that was replaced; ``at``: Unix seconds."""

    source: str
    reason: str
    at: int


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
        or any(not whole_number(0, 2**53)(row["seq"]) for row in rows_of(connection, "SELECT seq FROM sqlite_sequence"))
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
    wrong = [name for name, (check, _) in INSTALLATION.items() if not check(rows[0][name])]
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
        if not is_digest(digest):
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
            default = INSTALLATION[name][1]
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
