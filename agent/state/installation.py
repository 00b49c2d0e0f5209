"""The durable state of installation: active, previous, candidate and desired bundle, the epoch, the quarantine.

Implements :class:`contract.trust.rollback_floor.RollbackFloor`, so that what trust may never fall below is as durable
as the rest. Every method is one transaction or one query.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from msgspec import Struct

from agent.state.database import Database
from agent.state.history import History, note_activation
from agent.state.integrity import EPOCH, FLOORS, UNKNOWN, SetAside, forget_floors
from agent.state.warnings import WarningStore
from contract.errors import BundleRefused, StoreBroken, StoreFull
from contract.identifiers import Digest
from contract.mqtt.desired import BundleReference
from contract.mqtt.reading import parse_desired
from contract.mqtt.reports import BundleState
from contract.reasons import Reason

INSTALLATION = """
CREATE TABLE bundles (
    digest TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    security_epoch INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    installed_at INTEGER NOT NULL,
    tokens_per_second REAL,
    tokens_per_second_each REAL
) STRICT;
CREATE TABLE installation (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    phase TEXT NOT NULL,
    active TEXT REFERENCES bundles (digest),
    previous TEXT REFERENCES bundles (digest),
    candidate TEXT,
    failure_reason TEXT,
    failure_message TEXT,
    desired BLOB,
    overridden INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL,
    clock_floor INTEGER NOT NULL
) STRICT;
INSERT INTO installation (only, phase, epoch, clock_floor) VALUES (1, 'IDLE', 0, 0);
CREATE TABLE role_versions (role TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT;
CREATE TABLE attempts (digest TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT;
CREATE TABLE quarantine (
    digest TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;
CREATE TABLE swaps (at INTEGER NOT NULL, digest TEXT NOT NULL) STRICT;
CREATE TABLE adapters (
    digest TEXT PRIMARY KEY REFERENCES bundles (digest) ON DELETE CASCADE,
    base TEXT NOT NULL,
    committed INTEGER NOT NULL DEFAULT 0
) STRICT
"""
"""``adapters``: bundles that are; the committed ones are loaded beside the bundle whose manifest is ``base``."""

MAX_SWAPS_KEPT = 1000
"""Rows of the swap log; the limit per hour looks at a handful."""


class InstalledBundle(Struct, frozen=True):
    """A sealed bundle as ``state.db`` knows it; ``tokens_per_second`` was measured on this device, if it was: of all
    answers together, and of each.
    """

    digest: Digest
    name: str
    version: str
    security_epoch: int
    bytes: int
    installed_at: int
    tokens_per_second: float | None = None
    tokens_per_second_each: float | None = None

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def reported(self) -> BundleState:
        """The form in ``reported``."""
        return BundleState(self.name, self.version, self.digest, self.security_epoch)


class Quarantined(Struct, frozen=True):
    """A bundle that did not hold on this device, and why; it is not tried again."""

    digest: Digest
    name: str
    version: str
    reason: str
    message: str
    at: int


class Failure(Struct, frozen=True):
    """Why a candidate is being rolled back."""

    reason: Reason
    message: str


class Snapshot(Struct, frozen=True):
    """The installation row, all of it read at one instant.

    ``overridden``: the operator of this device chose another bundle after ``desired`` had arrived.
    """

    phase: str
    active: Digest | None
    previous: Digest | None
    candidate: Digest | None
    failure: Failure | None
    desired: bytes | None
    overridden: bool
    epoch: int

    @property
    def accepted(self) -> BundleReference | None:
        """The bundle of the ``desired`` document; None where there is none, or one that cannot be read any more."""
        try:
            document = None if self.desired is None else parse_desired(self.desired)
        except BundleRefused:
            return None
        return None if document is None else document.bundle

    @property
    def followed(self) -> BundleReference | None:
        """That bundle, unless the operator chose another one since."""
        return None if self.overridden else self.accepted


_COMMIT_ADAPTER = """
UPDATE adapters SET committed = digest = :digest
WHERE base = (SELECT base FROM adapters WHERE digest = :digest) AND digest IN (
    SELECT digest FROM bundles WHERE name = (SELECT name FROM bundles WHERE digest = :digest)
)
"""
"""There is one adapter of a name in force beside a base."""


class InstallationState:
    """The tables of installation in ``state.db``.

    Raises:
        StoreBroken, StoreFull: from every method.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.warning_store = WarningStore(database)
        self.history = History(database)

    @property
    def unwritable(self) -> StoreFull | StoreBroken | None:
        """Why nothing can be recorded now; None when it can."""
        return self._database.unwritable

    def set_aside(self) -> list[SetAside]:
        """What could not be read of the state, and is kept for diagnosis; the oldest first."""
        rows = self._database.query("SELECT source, reason, at FROM set_aside ORDER BY number")
        return [SetAside(row["source"], row["reason"], row["at"]) for row in rows]

    def newly_set_aside(self) -> list[SetAside]:
        """Those of them that nobody was told of yet; from now on somebody was."""
        rows = self._database.query("SELECT source, reason, at FROM set_aside WHERE NOT told ORDER BY number")
        if rows:
            with self._database.transaction("told") as connection:
                connection.execute("UPDATE set_aside SET told = 1")
        return [SetAside(row["source"], row["reason"], row["at"]) for row in rows]

    def check_floors(self, *, epoch: bool = True) -> None:
        """Nothing may be installed while it is not known what trust may never fall below; ``epoch`` False: root said
        that the security epoch does not matter.

        Raises:
            BundleRefused: TRUST_STATE_LOST.
        """
        lost = self._database.query("SELECT DISTINCT source FROM set_aside ORDER BY source")
        known = {row["source"] for row in lost} - (set() if epoch else {EPOCH})
        floors = sorted(known.intersection((*FLOORS, UNKNOWN)))
        if floors:
            raise BundleRefused(
                Reason.TRUST_STATE_LOST,
                f"{' and '.join(floors)} of state.db cannot be read, so what this device may never fall below is not "
                "known; provision trust once more with `edge-agent trust provision ROOT_JSON --replace`",
            )

    def snapshot(self) -> Snapshot:
        row = self._database.query("SELECT * FROM installation")[0]
        failure = Failure(Reason(row["failure_reason"]), row["failure_message"]) if row["failure_reason"] else None
        return Snapshot(
            phase=row["phase"],
            active=row["active"],
            previous=row["previous"],
            candidate=row["candidate"],
            failure=failure,
            desired=row["desired"],
            overridden=bool(row["overridden"]),
            epoch=row["epoch"],
        )

    def enter(self, phase: str, candidate: Digest | None, failure: Failure | None = None) -> None:
        """Record what is about to be done, before it is done."""
        with self._database.transaction(f"enter {phase}") as connection:
            _enter(connection, phase, candidate, failure)

    def enter_commit(self, phase: str, candidate: Digest, *, back: bool) -> None:
        """Record that ``candidate`` is committed, and do it: what is known of the wish (``back``) is not there after a
        restart.
        """
        with self._database.transaction(f"enter {phase}") as connection:
            _enter(connection, phase, candidate, None)
            _commit(connection, candidate, back=back)

    def record_desired(self, payload: bytes | None) -> None:
        """Remember the accepted ``desired`` document; None when nothing is desired any more."""
        with self._database.transaction("desire") as connection:
            connection.execute("UPDATE installation SET desired = ?, overridden = 0", (payload,))

    def override_desired(self) -> None:
        """The remembered ``desired`` document is not followed any more, until another one arrives."""
        with self._database.transaction("override desired") as connection:
            connection.execute("UPDATE installation SET overridden = 1")

    # Bundles.
    def add_bundle(self, bundle: InstalledBundle, base: str | None = None) -> None:
        """Remember a bundle that was sealed, an adapter with its ``base``; a known one keeps its measured speed."""
        with self._database.transaction("add bundle") as connection:
            connection.execute(
                "INSERT INTO bundles VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
                (
                    bundle.digest,
                    bundle.name,
                    bundle.version,
                    bundle.security_epoch,
                    bundle.bytes,
                    bundle.installed_at,
                    bundle.tokens_per_second,
                    bundle.tokens_per_second_each,
                ),
            )
            if base is not None:
                connection.execute(
                    "INSERT INTO adapters (digest, base) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING",
                    (bundle.digest, base),
                )

    def bundle(self, digest: Digest | None) -> InstalledBundle | None:
        rows = self._database.query("SELECT * FROM bundles WHERE digest = ?", (digest,))
        return _bundle(rows[0]) if rows else None

    def bundles(self) -> list[InstalledBundle]:
        """All of them, the newest first."""
        rows = self._database.query("SELECT * FROM bundles ORDER BY installed_at DESC, rowid DESC")
        return [_bundle(row) for row in rows]

    def forget_bundle(self, digest: Digest) -> None:
        """Its directory is gone, or about to be; never the active one's (the foreign key refuses)."""
        with self._database.transaction("forget bundle") as connection:
            connection.execute("UPDATE installation SET previous = NULL WHERE previous = ?", (digest,))
            connection.execute("DELETE FROM bundles WHERE digest = ?", (digest,))

    def record_speed(self, digest: Digest, aggregate: float, per_stream: float) -> None:
        """Remember how fast a bundle decodes on this device; probation compares its successor with it."""
        with self._database.transaction("measured") as connection:
            connection.execute(
                "UPDATE bundles SET tokens_per_second = ?, tokens_per_second_each = ? WHERE digest = ?",
                (aggregate, per_stream, digest),
            )

    def commit_candidate(self, digest: Digest, *, back: bool = False) -> None:
        """Make ``digest`` the active bundle, or an adapter in force, and raise the epoch to its; ``back``: it was gone
        back to.

        Doing it twice changes nothing.
        """
        with self._database.transaction("commit candidate") as connection:
            _commit(connection, digest, back=back)

    # Adapters.
    def adapters(self) -> dict[Digest, tuple[Digest, bool]]:
        """Every adapter bundle: the base that it belongs to, and whether it is in force."""
        rows = self._database.query("SELECT * FROM adapters")
        return {row["digest"]: (row["base"], bool(row["committed"])) for row in rows}

    def adapters_of(self, base: Digest | None) -> list[InstalledBundle]:
        """The adapters in force for the bundle ``base``, by name."""
        rows = self._database.query(
            "SELECT bundles.* FROM bundles JOIN adapters USING (digest) WHERE base = ? AND committed ORDER BY name",
            (base,),
        )
        return [_bundle(row) for row in rows]

    def in_force(self) -> list[InstalledBundle]:
        """The active bundle with its adapters; nothing where nothing is active."""
        active = self.bundle(self.snapshot().active)
        return [] if active is None else [active, *self.adapters_of(active.digest)]

    def retire_adapter(self, digest: Digest) -> None:
        """It is not loaded any more; the next collection removes it."""
        with self._database.transaction("retire adapter") as connection:
            connection.execute("UPDATE adapters SET committed = 0 WHERE digest = ?", (digest,))

    def retire_active(self) -> None:
        """Nothing is active from now on; what was can still be gone back to by root."""
        with self._database.transaction("retire active") as connection:
            connection.execute("UPDATE installation SET previous = active, active = NULL WHERE active IS NOT NULL")

    # What keeps a bad bundle from being tried for ever.
    def count_attempt(self, digest: Digest) -> int:
        """One more attempt at activating ``digest``; how many there were with this one."""
        with self._database.transaction("count attempt") as connection:
            connection.execute(
                "INSERT INTO attempts VALUES (?, 1) ON CONFLICT (digest) DO UPDATE SET count = count + 1", (digest,)
            )
            row = connection.execute("SELECT count FROM attempts WHERE digest = ?", (digest,)).fetchone()
            return int(row[0])

    def uncount_attempt(self, digest: Digest) -> None:
        """The last attempt was given up for another wish: that says nothing about ``digest``."""
        with self._database.transaction("forgive attempt") as connection:
            connection.execute("UPDATE attempts SET count = count - 1 WHERE digest = ? AND count > 0", (digest,))

    def quarantine(self, entry: Quarantined) -> None:
        with self._database.transaction("quarantine") as connection:
            connection.execute(
                "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
                (entry.digest, entry.name, entry.version, entry.reason, entry.message, entry.at),
            )

    def quarantined(self) -> list[Quarantined]:
        rows = self._database.query("SELECT * FROM quarantine ORDER BY at DESC, rowid DESC")
        return [Quarantined(**dict(row)) for row in rows]

    def release_quarantined(self, digest: Digest) -> None:
        """Let a bundle be tried again: the operator of this device asked for it."""
        with self._database.transaction("release") as connection:
            connection.execute("DELETE FROM quarantine WHERE digest = ?", (digest,))
            connection.execute("DELETE FROM attempts WHERE digest = ?", (digest,))

    def log_swap(self, digest: Digest, at: int) -> None:
        with self._database.transaction("log swap") as connection:
            connection.execute("INSERT INTO swaps VALUES (?, ?)", (at, digest))
            connection.execute(
                "DELETE FROM swaps WHERE rowid NOT IN (SELECT rowid FROM swaps ORDER BY rowid DESC LIMIT ?)",
                (MAX_SWAPS_KEPT,),
            )

    def swaps_between(self, start: int, end: int) -> list[int]:
        """Times (Unix seconds) of the swaps in that span, ascending; a clock that jumped must not block for ever."""
        rows = self._database.query("SELECT at FROM swaps WHERE at > ? AND at <= ? ORDER BY at", (start, end))
        return [int(row[0]) for row in rows]

    # The floor of trust.
    def role_versions(self) -> dict[str, int]:
        return {row["role"]: row["version"] for row in self._database.query("SELECT * FROM role_versions")}

    def raise_role_versions(self, versions: Mapping[str, int]) -> None:
        """Keep the higher one of what is known and what is given, for every role."""
        known = self.role_versions() if self.unwritable is not None else {}
        if self.unwritable is not None and all(version <= known.get(role, -1) for role, version in versions.items()):
            # Whoever reads trust says it every time; where nothing can be written, nothing has to be.
            return
        with self._database.transaction("raise role versions") as connection:
            connection.executemany(
                "INSERT INTO role_versions VALUES (?, ?) "
                "ON CONFLICT (role) DO UPDATE SET version = max(version, excluded.version)",
                list(versions.items()),
            )

    def reset_role_versions(self) -> None:
        """Forget them all: the operator provisions this device anew."""
        with self._database.transaction("reset role versions") as connection:
            connection.execute("DELETE FROM role_versions")
            forget_floors(connection, *FLOORS, UNKNOWN)

    def clock_floor(self) -> int:
        return int(self._database.query("SELECT clock_floor FROM installation")[0][0])

    def raise_clock_floor(self, seconds: int) -> None:
        with self._database.transaction("raise clock floor") as connection:
            connection.execute("UPDATE installation SET clock_floor = max(clock_floor, ?)", (seconds,))

    def reset_clock_floor(self) -> None:
        """Forget the latest signed time: an operator says that it lay in the future."""
        with self._database.transaction("reset clock floor") as connection:
            connection.execute("UPDATE installation SET clock_floor = 0")
            forget_floors(connection, "installation.clock_floor")

    def epoch(self) -> int:
        """The highest security epoch ever committed."""
        return self.snapshot().epoch


def _enter(connection: sqlite3.Connection, phase: str, candidate: Digest | None, failure: Failure | None) -> None:
    connection.execute(
        "UPDATE installation SET phase = ?, candidate = ?, failure_reason = ?, failure_message = ?",
        (phase, candidate, failure and failure.reason, failure and failure.message),
    )


def _commit(connection: sqlite3.Connection, digest: Digest, *, back: bool) -> None:
    if connection.execute("SELECT 1 FROM adapters WHERE digest = ?", (digest,)).fetchone():
        connection.execute(_COMMIT_ADAPTER, {"digest": digest})
    else:
        changed = connection.execute(
            "UPDATE installation SET previous = active, active = ? WHERE active IS NOT ?", (digest, digest)
        )
        if changed.rowcount:
            note_activation(connection, digest, back=back)
    connection.execute(
        "UPDATE installation SET epoch = max(epoch, (SELECT security_epoch FROM bundles WHERE digest = ?))",
        (digest,),
    )
    connection.execute("DELETE FROM attempts WHERE digest = ?", (digest,))


def _bundle(row: sqlite3.Row) -> InstalledBundle:
    return InstalledBundle(**dict(row))
