"""What is not as it should be any more, though service goes on: revoked bundles, expired or unusable metadata; and when
the metadata will expire.

The installer finds it out whenever it refreshes trust; it stays known across restarts, so that the agent, which reads
no metadata itself, can report it and choose another bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from msgspec import Struct

from agent.state.database import Database
from contract.bundle.layout import ROLES
from contract.identifiers import Digest
from contract.reasons import Reason

WARNINGS = """
CREATE TABLE warnings (
    reason TEXT NOT NULL,
    digest TEXT NOT NULL,
    message TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (reason, digest)
) STRICT;
CREATE TABLE metadata_expiry (role TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT
"""


class Warned(Struct, frozen=True):
    """``digest``: the bundle that is meant, None when it is the metadata; ``at``: when it was noticed, Unix seconds."""

    reason: Reason
    digest: Digest | None
    message: str
    at: int = 0


class WarningStore:
    """The tables of warnings and of expiry times in ``state.db``.

    Raises:
        StoreBroken, StoreFull: from every method.
    """

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    def warnings(self) -> list[Warned]:
        """What is known, the oldest first."""
        rows = self._database.query("SELECT * FROM warnings ORDER BY at, reason, digest")
        return [Warned(Reason(row["reason"]), row["digest"] or None, row["message"], row["at"]) for row in rows]

    def revoked(self) -> frozenset[Digest]:
        """Bundles on this device that their publisher has revoked, as far as this device has heard."""
        return frozenset(
            each.digest for each in self.warnings() if each.reason is Reason.REVOKED and each.digest is not None
        )

    def expiry(self) -> dict[str, int]:
        """When the metadata of each role expires, Unix seconds, as of the last refresh of trust."""
        rows = self._database.query("SELECT role, at FROM metadata_expiry")
        return {row["role"]: row["at"] for row in rows if row["role"] in ROLES}

    def note_expiry(self, times: Mapping[str, int]) -> None:
        """Remember ``times`` and nothing else."""
        if times == self.expiry():
            return
        with self._database.transaction("metadata expiry") as connection:
            connection.execute("DELETE FROM metadata_expiry")
            connection.executemany("INSERT INTO metadata_expiry VALUES (?, ?)", list(times.items()))

    def replace(self, found: Collection[Warned]) -> list[Warned]:
        """Remember ``found`` and nothing else; those that are new."""
        known = {(each.reason, each.digest): each for each in self.warnings()}
        fresh = [each for each in found if (each.reason, each.digest) not in known]
        if not fresh and len(found) == len(known):
            return []
        now = int(self._now())
        with self._database.transaction("warnings") as connection:
            connection.execute("DELETE FROM warnings")
            for each in found:
                before = known.get((each.reason, each.digest))
                connection.execute(
                    "INSERT OR IGNORE INTO warnings VALUES (?, ?, ?, ?)",
                    (each.reason, each.digest or "", each.message, now if before is None else before.at),
                )
        return fresh
