"""Who did what, append-only: every line has the hash of itself and of the line before, so that none can be changed or
taken out without that being seen.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from contract.errors import StoreBroken, printable
from contract.reasons import Reason
from fleet.store.schema import audit

FIRST = "0" * 64

MAX_TEXT = 128
"""Characters of a name that is written down."""


class Entry(NamedTuple):
    """``hash`` of this line and all before it."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    hash: str


def record(
    connection: Connection, *, at: float, actor: str, action: str, subject: str, detail: dict[str, Any] | None = None
) -> None:
    """Append a line, in the transaction that does what it says."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE audit IN EXCLUSIVE MODE")
    last = connection.execute(select(audit.c.id, audit.c.hash).order_by(audit.c.id.desc()).limit(1)).first()
    number, before = (1, FIRST) if last is None else (last.id + 1, last.hash)
    text = json.dumps(detail or {}, ensure_ascii=True, sort_keys=True)
    line = (number, at, printable(actor)[:MAX_TEXT], action, printable(subject)[:MAX_TEXT], text)
    names = ("id", "at", "actor", "action", "subject", "detail")
    values = dict(zip(names, line, strict=True))
    connection.execute(audit.insert().values(**values, hash=_hash(before, line)))


def _hash(before: str, line: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps([before, *line], ensure_ascii=True).encode()).hexdigest()


def entries(
    connection: Connection,
    *,
    limit: int | None = None,
    subject: str | None = None,
    actor: str | None = None,
    before: int | None = None,
    after: int | None = None,
) -> list[Entry]:
    """The last ``limit`` lines, oldest first, of those ``before`` one line and ``after`` another."""
    query = select(audit).order_by(audit.c.id.desc())
    if actor is not None:
        query = query.where(audit.c.actor == actor)
    if before is not None:
        query = query.where(audit.c.id < before)
    if after is not None:
        query = query.where(audit.c.id > after)
    if subject is not None:
        query = query.where(audit.c.subject == subject)
    if limit is not None:
        query = query.limit(limit)
    found = [
        Entry(row.id, row.at, row.actor, row.action, row.subject, json.loads(row.detail), row.hash)
        for row in connection.execute(query)
    ]
    return found[::-1]


def last_id(connection: Connection) -> int:
    """Number of the last line; 0 where there is none."""
    return connection.execute(select(func.max(audit.c.id))).scalar() or 0


def verify(connection: Connection) -> int:
    """See that the chain is whole; how many lines it has.

    Raises:
        StoreBroken: a line was changed, taken out or put in.
    """
    before, count = FIRST, 0
    for row in connection.execute(select(audit).order_by(audit.c.id)):
        count += 1
        line = (row.id, row.at, row.actor, row.action, row.subject, row.detail)
        if row.id != count or row.hash != _hash(before, line):
            raise StoreBroken(
                f"the audit log is not as it was written: line {count} does not follow from the one before",
                reason=Reason.STORED_DATA_INVALID,
            )
        before = row.hash
    return count
