"""One result for each (client, request id), whatever is delivered twice or restarted: the ledger of answers.

A request is *accepted* once its bytes are committed, *streaming* once a piece of its answer may have left the device,
*answered* once the bytes of its last frame are committed; those bytes are what every redelivery gets, unchanged.
After :data:`KEEP_SECONDS`, or when :data:`KEEP_BYTES` of answers are stored, text is forgotten and only the fact
remains (*expired*), so that a late redelivery gets a 410 and never a second run.

One that was accepted and could not be run after all is *turned away*: the bytes that say so are kept until it is asked
again, which makes it a new request. They are no result, so its id is as free as that of one that was never accepted.

Everything here is synchronous and runs inside a transaction of the caller; :mod:`agent.state.result_writer` groups
the transactions off the event loop.
"""

from __future__ import annotations

import sqlite3
from enum import IntEnum
from typing import Literal

from msgspec import Struct

KEEP_SECONDS = 15 * 60
"""How long an answer can be asked for again."""

KEEP_BYTES = 64 << 20
"""How much text of answers is kept; the oldest go first."""

KEEP_TOMBSTONES_SECONDS = 22 * 3600 - KEEP_SECONDS
"""How long an id stays used after its text is gone: free 22 hours after its answer, so that it can be used at the same
time every day, also on the day with 23 hours.
"""

KEEP_TOMBSTONES = 100_000
"""Traces at about 150 bytes each: 15 MB at most."""

ANSWERS = """
CREATE TABLE answers (
    client TEXT NOT NULL,
    id TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    state INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    accepted_at REAL NOT NULL,
    deadline_at REAL,
    changed_at REAL NOT NULL,
    correlation BLOB,
    request BLOB,
    last BLOB,
    delivered INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (client, id)
);
CREATE INDEX answers_by_state ON answers (state, changed_at)
"""


class _State(IntEnum):
    ACCEPTED = 0
    STREAMING = 1
    ANSWERED = 2
    EXPIRED = 3
    TURNED_AWAY = 4


class Key(Struct, frozen=True):
    """Whose request, and which."""

    client: str
    id: str


class Verdict(Struct, frozen=True):
    """What the ledger says of a request that arrived.

    ``new``: it is committed now and has to be run. ``running``: it is here already. ``answered``: ``last`` is its
    result (None where texts are not kept). ``conflict``: the id belongs to another request. ``gone``: it was answered,
    too long ago. ``refused``: it is new, and the caller did not want new ones.
    """

    kind: Literal["new", "running", "answered", "conflict", "gone", "refused"]
    last: bytes | None = None


class Unfinished(Struct, frozen=True):
    """A request that was accepted before a restart and has no result."""

    key: Key
    request: bytes | None
    correlation: bytes | None
    attempt: int
    streamed: bool
    accepted_at: float
    deadline_at: float | None


def accept(
    connection: sqlite3.Connection,
    key: Key,
    fingerprint: str,
    request: bytes | None,
    *,
    now: float,
    deadline_at: float | None = None,
    correlation: bytes | None = None,
    may_insert: bool = True,
) -> Verdict:
    """Register a request that arrived, or say what became of it. ``now`` and ``deadline_at`` are Unix seconds.

    Without ``request`` its text is not kept: it can be recognised when it comes again, and not run again.
    """
    row = connection.execute(
        "SELECT fingerprint, state, last FROM answers WHERE client = ? AND id = ?", (key.client, key.id)
    ).fetchone()
    if row is not None and row["state"] != _State.TURNED_AWAY:
        if row["fingerprint"] != fingerprint:
            return Verdict("conflict")
        if row["state"] == _State.ANSWERED:
            return Verdict("answered", row["last"])
        return Verdict("gone" if row["state"] == _State.EXPIRED else "running")
    if not may_insert:
        return Verdict("refused")
    connection.execute(
        "INSERT OR REPLACE INTO answers (client, id, fingerprint, state, attempt, accepted_at, deadline_at, "
        "changed_at, correlation, request) VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?)",
        (key.client, key.id, fingerprint, _State.ACCEPTED, now, deadline_at, now, correlation, request),
    )
    return Verdict("new")


def look_up(connection: sqlite3.Connection, key: Key) -> Verdict:
    """What is known of an id, without its body; ``refused`` stands for nothing."""
    row = connection.execute(
        "SELECT state, last FROM answers WHERE client = ? AND id = ?", (key.client, key.id)
    ).fetchone()
    if row is None:
        return Verdict("refused")
    if row["state"] in (_State.ANSWERED, _State.TURNED_AWAY):
        return Verdict("answered", row["last"])
    return Verdict("gone" if row["state"] == _State.EXPIRED else "running")


def mark_streaming(connection: sqlite3.Connection, key: Key, attempt: int) -> None:
    """From now on pieces of the answer may leave the device."""
    connection.execute(
        "UPDATE answers SET state = ?, attempt = ? WHERE client = ? AND id = ? AND state IN (?, ?)",
        (_State.STREAMING, attempt, key.client, key.id, _State.ACCEPTED, _State.STREAMING),
    )


def mark_answered(connection: sqlite3.Connection, key: Key, last: bytes | None, *, now: float) -> bytes | None:
    """Store the last frame, or without it the fact; returns the bytes that count, which are those stored first."""
    changed = connection.execute(
        # The broker may have acknowledged what turned an earlier delivery of it away.
        "UPDATE answers SET state = ?, last = ?, request = NULL, changed_at = ?, delivered = 0 "
        "WHERE client = ? AND id = ? AND state IN (?, ?)",
        (_State.ANSWERED, last, now, key.client, key.id, _State.ACCEPTED, _State.STREAMING),
    ).rowcount
    if changed:
        return last
    stored = look_up(connection, key).last
    return last if stored is None else stored


def mark_rejected(connection: sqlite3.Connection, key: Key, last: bytes, *, now: float) -> None:
    """It could not be run, as ``last`` says; asked again, it is a new request."""
    connection.execute(
        "UPDATE answers SET state = ?, last = ?, request = NULL, changed_at = ?, delivered = 0 "
        "WHERE client = ? AND id = ? AND state IN (?, ?)",
        (_State.TURNED_AWAY, last, now, key.client, key.id, _State.ACCEPTED, _State.STREAMING),
    )


def mark_delivered(connection: sqlite3.Connection, key: Key) -> None:
    """The broker has the last frame."""
    connection.execute("UPDATE answers SET delivered = 1 WHERE client = ? AND id = ?", (key.client, key.id))


def forget_texts(connection: sqlite3.Connection) -> None:
    """Drop the text of every answer that the broker has; the facts stay."""
    connection.execute(
        "UPDATE answers SET last = NULL WHERE state = ? AND delivered = 1 AND last IS NOT NULL", (_State.ANSWERED,)
    )


def unfinished(connection: sqlite3.Connection) -> list[Unfinished]:
    """What was accepted and not answered, oldest first; each call counts as one more attempt."""
    connection.execute(
        "UPDATE answers SET attempt = attempt + 1 WHERE state IN (?, ?)", (_State.ACCEPTED, _State.STREAMING)
    )
    rows = connection.execute(
        "SELECT * FROM answers WHERE state IN (?, ?) ORDER BY accepted_at", (_State.ACCEPTED, _State.STREAMING)
    ).fetchall()
    return [
        Unfinished(
            key=Key(row["client"], row["id"]),
            request=row["request"],
            correlation=row["correlation"],
            attempt=row["attempt"],
            streamed=row["state"] == _State.STREAMING,
            accepted_at=row["accepted_at"],
            deadline_at=row["deadline_at"],
        )
        for row in rows
    ]


def undelivered(connection: sqlite3.Connection) -> list[tuple[Key, bytes | None, bytes | None]]:
    """Last frames that the broker may not have: key, bytes (if kept), correlation data; oldest first."""
    rows = connection.execute(
        "SELECT client, id, last, correlation FROM answers WHERE state IN (?, ?) AND delivered = 0 ORDER BY changed_at",
        (_State.ANSWERED, _State.TURNED_AWAY),
    ).fetchall()
    return [(Key(row["client"], row["id"]), row["last"], row["correlation"]) for row in rows]


def expire(connection: sqlite3.Connection, *, now: float, keep_bytes: int = KEEP_BYTES) -> int:
    """Forget the text of old answers, then the traces of very old ones; how many texts were forgotten."""
    # From now on: a clock that was set forward must not free ids that brokers still know.
    forget = (
        "UPDATE answers SET state = ?, last = NULL, correlation = NULL, changed_at = ? "
        "WHERE state = ? AND changed_at <= ?"
    )
    count = connection.execute(forget, (_State.EXPIRED, now, _State.ANSWERED, now - KEEP_SECONDS)).rowcount
    connection.execute(
        "DELETE FROM answers WHERE state = ? AND changed_at <= ?", (_State.TURNED_AWAY, now - KEEP_SECONDS)
    )
    stored = connection.execute(
        "SELECT COALESCE(SUM(LENGTH(last)), 0) FROM answers WHERE state = ?", (_State.ANSWERED,)
    ).fetchone()[0]
    if stored > keep_bytes:
        # The running total from the newest back says where the budget ends.
        row = connection.execute(
            "SELECT MAX(changed_at) FROM (SELECT changed_at, SUM(LENGTH(last)) OVER "
            "(ORDER BY changed_at DESC, client, id) AS total FROM answers WHERE state = ?) WHERE total > ?",
            (_State.ANSWERED, keep_bytes),
        ).fetchone()
        count += connection.execute(forget, (_State.EXPIRED, now, _State.ANSWERED, row[0])).rowcount
    connection.execute(
        "DELETE FROM answers WHERE state = ? AND changed_at <= ?", (_State.EXPIRED, now - KEEP_TOMBSTONES_SECONDS)
    )
    connection.execute(
        "DELETE FROM answers WHERE state = ? AND rowid IN "
        "(SELECT rowid FROM answers WHERE state = ? ORDER BY changed_at DESC LIMIT -1 OFFSET ?)",
        (_State.EXPIRED, _State.EXPIRED, KEEP_TOMBSTONES),
    )
    return count


_TRACK = (
    "CREATE TEMP TABLE changed (client TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (client, id))",
    "CREATE TEMP TRIGGER added AFTER INSERT ON main.answers BEGIN "
    "INSERT OR IGNORE INTO changed VALUES (NEW.client, NEW.id); END",
    "CREATE TEMP TRIGGER altered AFTER UPDATE ON main.answers BEGIN "
    "INSERT OR IGNORE INTO changed VALUES (NEW.client, NEW.id); END",
    "CREATE TEMP TRIGGER removed AFTER DELETE ON main.answers BEGIN "
    "INSERT OR IGNORE INTO changed VALUES (OLD.client, OLD.id); END",
)


def track_changes(connection: sqlite3.Connection) -> None:
    """From now on note which rows of a copy in memory differ from the file."""
    for statement in _TRACK:
        connection.execute(statement)


def carry_over(memory: sqlite3.Connection, file: sqlite3.Connection) -> None:
    """Make the file say what the copy in memory says, as far as it was changed since :func:`track_changes`."""
    for client, request in memory.execute("SELECT client, id FROM temp.changed").fetchall():
        file.execute("DELETE FROM answers WHERE client = ? AND id = ?", (client, request))
        row = memory.execute("SELECT * FROM answers WHERE client = ? AND id = ?", (client, request)).fetchone()
        if row is not None:
            names, placeholders = ", ".join(row.keys()), ", ".join("?" * len(row))
            file.execute(f"INSERT INTO answers ({names}) VALUES ({placeholders})", tuple(row))  # noqa: S608 # our own names
