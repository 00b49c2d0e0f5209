"""API keys of the gateway: hashes alone, what each may ask, how much, and what it has used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from contract.errors import RequestInvalid
from contract.schema_faults import nearest
from contract.strict_json import prepare
from fleet.gateway.quota import DAY, Bucket, Limits, Used
from fleet.store.schema import token, token_usage

# Read by the service's loop and by whoever answers HTTP.
prepare(Limits)

KEPT_SECONDS = 2 * DAY
"""Of what was used: the windows are minutes and days."""


class TokenRow(NamedTuple):
    """``hash``: SHA-256 of the key, which is kept nowhere. ``models``: patterns of what it may ask; none: all."""

    name: str
    hash: str
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None
    models: tuple[str, ...]
    limits: Limits


def rows(connection: Connection) -> list[TokenRow]:
    """All of them, those that were revoked, too."""
    return [
        TokenRow(
            row.name, row.hash, row.created_at, row.created_by, row.expires_at, row.revoked_at,
            tuple(json.loads(row.models)), msgspec.json.decode(row.limits, type=Limits),
        )
        for row in connection.execute(select(token).order_by(token.c.name))
    ]  # fmt: skip


def add(connection: Connection, row: TokenRow) -> None:
    """A new one.

    Raises:
        RequestInvalid: there is one of this name, or was.
    """
    if connection.execute(select(token.c.name).where(token.c.name == row.name)).first() is not None:
        raise RequestInvalid(f"there is a token {row.name!r} already, or was: choose another name", code=409)
    values = {**row._asdict(), "models": json.dumps(row.models), "limits": msgspec.json.encode(row.limits).decode()}
    connection.execute(token.insert().values(values))


def revoke(connection: Connection, name: str, now: float) -> bool:
    """Let it be refused from now on; False if it was revoked already.

    Raises:
        RequestInvalid: there is none of this name.
    """
    found = connection.execute(select(token.c.revoked_at).where(token.c.name == name)).first()
    if found is None:
        near = nearest(name, [each.name for each in rows(connection)])
        hint = "" if near is None else f"; did you mean {near}?"
        raise RequestInvalid(f"there is no token {name!r}{hint}", code=404)
    if found.revoked_at is not None:
        return False
    connection.execute(token.update().where(token.c.name == name).values(revoked_at=now))
    return True


def add_usage(connection: Connection, used: Mapping[Bucket, Used], now: float) -> None:
    """Add to what was used, and forget what no window needs any more."""
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    # In one order, so that two that write the same rows do not wait for each other.
    for bucket, more in sorted(used.items()):
        statement = make(token_usage).values(**bucket._asdict(), requests=more.requests, tokens=more.tokens)
        columns = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=["token", "window", "start"],
            set_={
                "requests": token_usage.c.requests + columns.requests,
                "tokens": token_usage.c.tokens + columns.tokens,
            },
        )
        connection.execute(statement)
    connection.execute(token_usage.delete().where(token_usage.c.start < int(now) - KEPT_SECONDS))


def usage(connection: Connection, starts: Iterable[int]) -> dict[Bucket, Used]:
    """What was used in the windows that began at ``starts``."""
    query = select(token_usage).where(token_usage.c.start.in_(list(starts)))
    return {
        Bucket(row.token, row.window, row.start): Used(row.requests, row.tokens) for row in connection.execute(query)
    }
