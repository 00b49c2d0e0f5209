"""Which bundle was active after which: what a rollback goes back to, and what is worth keeping for one."""

from __future__ import annotations

import sqlite3

from agent.state.database import Database
from contract.identifiers import Digest

HISTORY = """
CREATE TABLE history (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL REFERENCES bundles (digest) ON DELETE CASCADE,
    undone INTEGER NOT NULL DEFAULT 0
) STRICT
"""
"""``undone``: it was gone back from."""

MAX_KEPT = 1000
"""Rows; a device keeps a hundred bundles at most."""


def note_activation(connection: sqlite3.Connection, digest: Digest, *, back: bool) -> None:
    """``digest`` becomes active; ``back``: by a rollback, which undoes what came after it."""
    known = connection.execute("SELECT max(number) FROM history WHERE digest = ? AND NOT undone", (digest,)).fetchone()
    if back and known[0] is not None:
        connection.execute("UPDATE history SET undone = 1 WHERE number > ?", (known[0],))
    else:
        connection.execute("INSERT INTO history (digest) VALUES (?)", (digest,))
    connection.execute("DELETE FROM history WHERE number <= (SELECT max(number) FROM history) - ?", (MAX_KEPT,))


class History:
    """Raises StoreBroken, StoreFull: from every method."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def before(self, active: Digest | None) -> Digest | None:
        """The bundle that was active before ``active``, of those that are here and were not gone back from."""
        rows = self._database.query(
            "SELECT digest FROM history WHERE NOT undone AND digest IS NOT ? ORDER BY number DESC LIMIT 1", (active,)
        )
        return Digest(rows[0]["digest"]) if rows else None

    def once_active(self) -> list[Digest]:
        """Those that were ever active: first those that were not gone back from, and of each kind the latest first."""
        rows = self._database.query("SELECT digest FROM history GROUP BY digest ORDER BY min(undone), max(number) DESC")
        return [Digest(row["digest"]) for row in rows]
