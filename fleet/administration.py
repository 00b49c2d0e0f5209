"""What people do to accounts and tokens, each with its line in the audit log, for commands and console alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fleet.access.passwords import check_password, hash_password
from fleet.access.roles import Role, check_name
from fleet.access.secrets import hash_secret, make_token
from fleet.operations import Actor
from fleet.store import accounts, audit
from fleet.store.accounts import Token
from fleet.store.database import Transaction


def hashed(password: str, name: str) -> str:
    """A new password of ``name``, as it is stored.

    Raises:
        RequestInvalid: it is too short, or has the name in it.
    """
    check_password(password, name)
    return hash_password(password)


def create(
    connection: Transaction,
    name: str,
    roles: Sequence[Role],
    actor: Actor,
    now: float,
    *,
    password: str | None,
    issuer: str = "",
    subject: str = "",
) -> None:
    """Make an account; ``password`` is hashed.

    Raises:
        RequestInvalid: the name is taken, or is none.
    """
    accounts.create(connection, check_name(name), roles, password=password, issuer=issuer, subject=subject, now=now)
    _note(
        connection,
        actor,
        now,
        "account.create",
        subject=name,
        detail={"roles": [str(role) for role in roles], "issuer": issuer},
    )


def set_roles(connection: Transaction, name: str, roles: Sequence[Role], actor: Actor, now: float) -> None:
    """Give an account other roles.

    Raises:
        RequestInvalid: there is none, or nobody could administer accounts any more.
    """
    before = accounts.find(connection, name)
    if before.roles == tuple(roles):
        return
    accounts.set_roles(connection, name, roles)
    detail = {"roles": [str(role) for role in roles], "before": [str(role) for role in before.roles]}
    _note(connection, actor, now, "account.roles", subject=name, detail=detail)


def set_disabled(connection: Transaction, name: str, disabled: bool, actor: Actor, now: float) -> None:
    """Let an account in no more, or again.

    Raises:
        RequestInvalid: there is none, or nobody could administer accounts any more.
    """
    accounts.find(connection, name)
    accounts.set_disabled(connection, name, disabled)
    _note(connection, actor, now, "account.disable" if disabled else "account.enable", subject=name, detail={})


def set_password(connection: Transaction, name: str, password: str, actor: Actor, now: float) -> None:
    """Give a hashed one; all sessions of the account end.

    Raises:
        RequestInvalid: there is no such account.
    """
    accounts.find(connection, name)
    accounts.set_password(connection, name, password)
    _note(connection, actor, now, "account.password", subject=name, detail={})


def create_token(
    connection: Transaction, name: str, label: str, actor: Actor, now: float, *, expires: float | None
) -> str:
    """Make an API token of an account; it is shown once.

    Raises:
        RequestInvalid: there is no such account, or it has too many.
    """
    accounts.find(connection, name)
    secret = make_token()
    number = accounts.add_token(connection, name, label, hash_secret(secret), now=now, expires=expires)
    _note(
        connection,
        actor,
        now,
        "token.create",
        subject=name,
        detail={"token": number, "name": label, "expires": expires},
    )
    return secret


def revoke_token(connection: Transaction, number: int, actor: Actor, now: float, *, owner: str | None = None) -> Token:
    """Take a token away; with ``owner`` only one of that account.

    Raises:
        RequestInvalid: there is none.
    """
    found = accounts.revoke_token(connection, number, owner)
    _note(connection, actor, now, "token.revoke", subject=found.account, detail={"token": number, "name": found.name})
    return found


def _note(
    connection: Transaction, actor: Actor, now: float, action: str, *, subject: str, detail: Mapping[str, object]
) -> None:
    audit.record(connection, at=now, actor=actor.name, action=action, subject=subject, detail=actor.detail(detail))
