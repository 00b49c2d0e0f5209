"""Wishes on their way to the broker: written with the state that they come of, sent after it, again where in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select, update

from fleet.store.schema import outbox


class Wish(NamedTuple):
    """The current wish for a device; an empty payload withdraws it."""

    device: str
    revision: str
    payload: bytes


def unsent(connection: Connection, limit: int = 1000) -> list[Wish]:
    """Those that the broker has not acknowledged, the oldest first."""
    query = select(outbox).where(outbox.c.sent_at.is_(None)).order_by(outbox.c.written_at, outbox.c.device)
    return [Wish(row.device, row.revision, row.payload.encode()) for row in connection.execute(query.limit(limit))]


def mark_sent(connection: Connection, wishes: Sequence[Wish], now: float) -> None:
    """The broker has them. A newer wish for the same device stays unsent."""
    for wish in wishes:
        same = (outbox.c.device == wish.device) & (outbox.c.revision == wish.revision)
        connection.execute(update(outbox).where(same).values(sent_at=now))


def current(connection: Connection) -> dict[str, Wish]:
    """The wish of every device that has one."""
    return {
        row.device: Wish(row.device, row.revision, row.payload.encode()) for row in connection.execute(select(outbox))
    }


def send_again(connection: Connection, devices: Sequence[str]) -> None:
    """The broker has lost what it held for ``devices``."""
    for device in devices:
        connection.execute(update(outbox).where(outbox.c.device == device).values(sent_at=None))
