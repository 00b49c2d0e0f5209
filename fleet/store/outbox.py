"""Wishes on their way to the broker: written with the state that they come of, sent after it, again where in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select, update

from fleet.rollout.states import ENDED
from fleet.store.schema import device, outbox, rollout


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


def unheard(connection: Connection, before: float) -> list[str]:
    """Devices of rollouts that have not ended which are there, and do not follow the wish that the broker has held for
    them since ``before``. Wishes of others are theirs to send.
    """
    says_it = device.c.reported.contains('"' + outbox.c.revision + '"')
    query = (
        select(outbox.c.device)
        .join(device, device.c.id == outbox.c.device)
        .join(rollout, rollout.c.id == outbox.c.rollout)
        .where(rollout.c.state.not_in(list(ENDED)), outbox.c.payload != "", outbox.c.sent_at < before)
        .where(device.c.online, device.c.desired == outbox.c.revision, device.c.reported.is_(None) | ~says_it)
    )
    return list(connection.execute(query).scalars())


def send_again(connection: Connection, devices: Sequence[str]) -> None:
    """The broker has lost what it held for ``devices``."""
    for name in devices:
        connection.execute(update(outbox).where(outbox.c.device == name).values(sent_at=None))
