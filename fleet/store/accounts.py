"""Accounts, their sessions and their API tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence

from msgspec import Struct
from sqlalchemy import Connection, delete, func, insert, select, update

from contract.errors import RequestInvalid
from fleet.access.roles import Permission, Role, permissions
from fleet.store.schema import account, account_token, session

IDLE_SECONDS = 3600.0
"""A session that nothing was asked in for so long has ended."""

SESSION_SECONDS = 12 * 3600.0
"""However much it is used: a working day."""

SEEN_SECONDS = 60.0
"""How exactly its last use is noted, so that not every page writes."""

MAX_SESSIONS = 50
"""Of one account; the oldest end."""

MAX_TOKENS = 50
"""Of one account."""

MAX_ACCOUNTS = 10_000


class Account(Struct, frozen=True, kw_only=True):
    """``issuer``: the OpenID provider that vouches for it, as its ``subject``; empty for a local one, which has a
    password.
    """

    name: str
    roles: tuple[Role, ...]
    disabled: bool
    issuer: str
    subject: str
    created_at: float
    has_password: bool

    @property
    def permissions(self) -> frozenset[Permission]:
        return frozenset() if self.disabled else permissions(self.roles)


class Token(Struct, frozen=True, kw_only=True):
    """``expires``: None for never."""

    id: int
    account: str
    name: str
    created_at: float
    expires: float | None
    used_at: float | None


def _account(row: object) -> Account:
    values = dict(row._mapping)  # type: ignore[attr-defined]
    return Account(
        name=values["name"],
        roles=tuple(Role(each) for each in json.loads(values["roles"])),
        disabled=values["disabled"],
        issuer=values["issuer"],
        subject=values["subject"],
        created_at=values["created_at"],
        has_password=values["password"] is not None,
    )


def every(connection: Connection) -> list[Account]:
    """By name."""
    return [_account(row) for row in connection.execute(select(account).order_by(account.c.name))]


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(account)).scalar() or 0


def find(connection: Connection, name: str) -> Account:
    """The account ``name``.

    Raises:
        RequestInvalid: there is none.
    """
    row = connection.execute(select(account).where(account.c.name == name)).first()
    if row is None:
        raise RequestInvalid(
            f"there is no account {name!r}; `edge-fleet user list` shows them", code=404, kind="not_found", field="name"
        )
    return _account(row)


def password_of(connection: Connection, name: str) -> str | None:
    """Its hash; None where there is no account, it is disabled, or it has none."""
    query = select(account.c.password).where((account.c.name == name) & account.c.disabled.is_(False))
    return connection.execute(query).scalar()


def create(
    connection: Connection,
    name: str,
    roles: Sequence[Role],
    *,
    password: str | None,
    issuer: str = "",
    subject: str = "",
    now: float,
) -> Account:
    """Add an account; ``password`` is its hash.

    Raises:
        RequestInvalid: the name is taken.
    """
    if connection.execute(select(account.c.name).where(func.lower(account.c.name) == name.lower())).first() is not None:
        raise RequestInvalid(f"there is an account {name!r} already", code=409, kind="conflict", field="name")
    if count(connection) >= MAX_ACCOUNTS:
        raise RequestInvalid(f"there are {MAX_ACCOUNTS:,} accounts, which is all there is room for", code=409)
    values = {"name": name, "password": password, "roles": json.dumps([str(role) for role in roles])}
    vouched = {"issuer": issuer, "subject": subject}
    connection.execute(insert(account).values(**values, **vouched, disabled=False, created_at=now))
    return find(connection, name)


def set_roles(connection: Connection, name: str, roles: Sequence[Role]) -> None:
    """Of an account that is there.

    Raises:
        RequestInvalid: nobody could administer accounts any more.
    """
    had = _administered(connection)
    changed = update(account).where(account.c.name == name)
    connection.execute(changed.values(roles=json.dumps([str(role) for role in roles])))
    _check_admin(connection, had)


def set_disabled(connection: Connection, name: str, disabled: bool) -> None:
    """Disabling ends its sessions; its tokens do not work while it is.

    Raises:
        RequestInvalid: nobody could administer accounts any more.
    """
    had = _administered(connection)
    connection.execute(update(account).where(account.c.name == name).values(disabled=disabled))
    if disabled:
        end_sessions(connection, name)
    _check_admin(connection, had)


def _administered(connection: Connection) -> bool:
    return any(Permission.ADMINISTER in each.permissions for each in every(connection))


def _check_admin(connection: Connection, had: bool) -> None:
    if had and not _administered(connection):
        raise RequestInvalid(
            "nobody could administer accounts any more: give another account the role admin first",
            code=409,
            kind="conflict",
        )


def set_password(connection: Connection, name: str, password: str) -> None:
    """Give the hash of a new one, which ends all its sessions."""
    connection.execute(update(account).where(account.c.name == name).values(password=password))
    end_sessions(connection, name)


# Sessions.
def begin_session(connection: Connection, name: str, hashed: str, now: float) -> None:
    """Let the session in whose secret has the hash ``hashed``."""
    expired = (session.c.created_at <= now - SESSION_SECONDS) | (session.c.seen_at <= now - IDLE_SECONDS)
    connection.execute(delete(session).where(expired))
    mine = select(session.c.hash).where(session.c.account == name).order_by(session.c.created_at.desc())
    kept = [row.hash for row in connection.execute(mine.limit(MAX_SESSIONS - 1))]
    connection.execute(delete(session).where((session.c.account == name) & session.c.hash.not_in(kept)))
    connection.execute(insert(session).values(hash=hashed, account=name, created_at=now, seen_at=now))


def in_session(connection: Connection, hashed: str, now: float) -> tuple[Account, bool] | None:
    """Whose session it is, if it goes on, and whether that it was seen is to be noted."""
    query = select(account, session.c.created_at.label("begun"), session.c.seen_at).join(
        session, session.c.account == account.c.name
    )
    row = connection.execute(query.where(session.c.hash == hashed)).first()
    if row is None or row.disabled or row.begun <= now - SESSION_SECONDS or row.seen_at <= now - IDLE_SECONDS:
        return None
    return _account(row), row.seen_at <= now - SEEN_SECONDS


def note_seen(connection: Connection, hashed: str, now: float) -> None:
    connection.execute(update(session).where(session.c.hash == hashed).values(seen_at=now))


def end_session(connection: Connection, hashed: str) -> None:
    connection.execute(delete(session).where(session.c.hash == hashed))


def end_sessions(connection: Connection, name: str) -> None:
    """All of one account."""
    connection.execute(delete(session).where(session.c.account == name))


# API tokens.
def add_token(
    connection: Connection, name: str, label: str, hashed: str, *, now: float, expires: float | None = None
) -> int:
    """Its number.

    Raises:
        RequestInvalid: the account has too many.
    """
    held = (
        connection.execute(
            select(func.count()).select_from(account_token).where(account_token.c.account == name)
        ).scalar()
        or 0
    )
    if held >= MAX_TOKENS:
        raise RequestInvalid(f"{name} has {MAX_TOKENS} tokens: revoke one first", code=409, kind="conflict")
    values = {"hash": hashed, "account": name, "name": label, "created_at": now, "expires": expires}
    return int(connection.execute(insert(account_token).values(**values).returning(account_token.c.id)).scalar_one())


def with_token(connection: Connection, hashed: str, now: float) -> tuple[Account, Token, bool] | None:
    """Whose token it is, and whether that it was used is to be noted."""
    row = connection.execute(select(account_token).where(account_token.c.hash == hashed)).first()
    if row is None or (row.expires is not None and row.expires <= now):
        return None
    owner = find(connection, row.account)
    if owner.disabled:
        return None
    return owner, _token(row), row.used_at is None or row.used_at <= now - SEEN_SECONDS


def _token(row: object) -> Token:
    values = dict(row._mapping)  # type: ignore[attr-defined]
    del values["hash"]
    return Token(**values)


def note_used(connection: Connection, number: int, now: float) -> None:
    connection.execute(update(account_token).where(account_token.c.id == number).values(used_at=now))


def tokens(connection: Connection, name: str | None = None) -> list[Token]:
    """Of one account, or of all."""
    query = select(account_token).order_by(account_token.c.account, account_token.c.id)
    if name is not None:
        query = query.where(account_token.c.account == name)
    return [_token(row) for row in connection.execute(query)]


def revoke_token(connection: Connection, number: int, name: str | None = None) -> Token:
    """Take a token away; with ``name`` only one of that account.

    Raises:
        RequestInvalid: there is none.
    """
    found = next((each for each in tokens(connection, name) if each.id == number), None)
    if found is None:
        raise RequestInvalid(f"there is no token {number}", code=404, kind="not_found", field="token")
    connection.execute(delete(account_token).where(account_token.c.id == number))
    return found
