"""Beginning and ending sessions with a local account: slowed down where passwords are guessed, and a new secret each
time, so that nothing that was known before is worth anything after.
"""

from __future__ import annotations

import logging
import threading

from contract.errors import RequestInvalid
from fleet.access.passwords import verify_password
from fleet.access.secrets import hash_secret, make_secret
from fleet.access.throttle import Throttle
from fleet.store import accounts, audit
from fleet.store.database import Database

log = logging.getLogger("edge_fleet.web")

HASHING = threading.BoundedSemaphore(2)
"""Passwords hashed at a time: each takes a core for a tenth of a second, and 16 MiB."""

WRONG = "name or password is wrong"


class TooManyAttempts(RequestInvalid):
    """``retry_after`` in seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"too many attempts: the next one is looked at in {max(1, round(seconds))} s",
            code=429,
            kind="too_many_requests",
        )
        self.retry_after = seconds


def sign_in(
    database: Database, throttle: Throttle, name: str, password: str, *, address: str, previous: str, now: float
) -> str:
    """The secret of a new session; the one of ``previous``, if there was one, ends.

    Raises:
        RequestInvalid: name or password is wrong, which is all that is said; TooManyAttempts.
    """
    if (wait := throttle.wait(name, address, now)) > 0:
        raise TooManyAttempts(wait)
    if throttle.begin(name, address, now):
        log.warning("sign-in as %r from %s is slowed down: too many failures", name[:64], address)
        with database.write() as connection:
            audit.record(
                connection,
                at=now,
                actor="console",
                action="session.slowed",
                subject=name[:64],
                detail={"from": address},
            )
    with database.read() as connection:
        stored = accounts.password_of(connection, name)
    with HASHING:
        right = verify_password(password, stored)
    if not right:
        raise RequestInvalid(WRONG, code=401, kind="unauthorized", field="password")
    throttle.succeed(name, address)
    return begin_session(database, name, address=address, previous=previous, now=now)


def begin_session(database: Database, name: str, *, address: str, previous: str, now: float, via: str = "") -> str:
    """A new session of an account that has proved itself."""
    secret = make_secret()
    with database.write() as connection:
        if previous:
            accounts.end_session(connection, hash_secret(previous))
        accounts.begin_session(connection, name, hash_secret(secret), now)
        detail = {"from": address} | ({"via": via} if via else {})
        audit.record(connection, at=now, actor=name, action="session.begin", subject=name, detail=detail)
    return secret


def sign_out(database: Database, name: str, secret: str, *, everywhere: bool, now: float) -> None:
    """End this session, or all of the account."""
    with database.write() as connection:
        if everywhere:
            accounts.end_sessions(connection, name)
        else:
            accounts.end_session(connection, hash_secret(secret))
        detail = {"everywhere": True} if everywhere else {}
        audit.record(connection, at=now, actor=name, action="session.end", subject=name, detail=detail)
