"""Who asks: a session of the console, or a token of the API."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from contract.errors import RequestInvalid
from fleet.access.roles import Permission
from fleet.access.secrets import csrf_token, hash_secret
from fleet.operations import Actor
from fleet.store import accounts
from fleet.store.accounts import Account
from fleet.store.database import Database

MAX_SECRET = 256
"""Characters of what may be a token or a session; ours have 47."""


class Identity(Struct, frozen=True):
    """``session`` is the secret of the session that asks; empty for a token. ``via``: for the audit log."""

    account: Account
    session: str = ""
    via: str = ""

    @property
    def name(self) -> str:
        return self.account.name

    @property
    def actor(self) -> Actor:
        return Actor(self.account.name, self.via)

    @property
    def csrf(self) -> str:
        return csrf_token(self.session) if self.session else ""

    def may(self, permission: Permission) -> bool:
        return permission in self.account.permissions

    def require(self, permission: Permission) -> None:
        """See that it may.

        Raises:
            RequestInvalid: it may not.
        """
        if not self.may(permission):
            roles = ", ".join(self.account.roles)
            raise RequestInvalid(
                f"the role of {self.name} ({roles}) does not permit it to {permission}", code=403, kind="forbidden"
            )


def cookie_name(is_https: bool) -> str:
    """With ``__Host-`` browsers let no neighbouring host set it; that needs HTTPS."""
    return "__Host-edge-fleet" if is_https else "edge-fleet"


def identify(
    database: Database, headers: Mapping[str, str], cookies: Mapping[str, str], *, is_https: bool, now: float
) -> Identity | None:
    """Whoever asks; None where nobody says who they are, or what they say does not hold (any more)."""
    kind, _, secret = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return _by_token(database, secret.strip(), now)
    session = cookies.get(cookie_name(is_https), "")
    return _by_session(database, session, now) if session else None


def _by_token(database: Database, secret: str, now: float) -> Identity | None:
    if not 0 < len(secret) <= MAX_SECRET:
        return None
    with database.read() as connection:
        found = accounts.with_token(connection, hash_secret(secret), now)
    if found is None:
        return None
    account, token, note = found
    if note:
        with database.write() as connection:
            accounts.note_used(connection, token.id, now)
    return Identity(account, via=f"token {token.id} ({token.name})")


def _by_session(database: Database, secret: str, now: float) -> Identity | None:
    if len(secret) > MAX_SECRET:
        return None
    hashed = hash_secret(secret)
    with database.read() as connection:
        found = accounts.in_session(connection, hashed, now)
    if found is None:
        return None
    account, note = found
    if note:
        with database.write() as connection:
            accounts.note_seen(connection, hashed, now)
    return Identity(account, session=secret, via="console")
