"""What was answered to requests that named themselves, so that one that is sent again changes nothing again.

After https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select

from contract.errors import RequestInvalid
from fleet.store.schema import idempotent_request

KEPT_SECONDS = 86400.0

MAX_KEY = 128
"""Characters: a UUID has 36."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


def fingerprint(method: str, path: str, body: bytes) -> str:
    """Of a request, to know another one under the same key."""
    return hashlib.sha256(b"\0".join((method.encode(), path.encode(), body))).hexdigest()


def answered(connection: Connection, account: str, key: str, *, request: str, now: float) -> Answer | None:
    """What was answered before. Two that come at once wait for each other.

    Raises:
        RequestInvalid: the key was used for another request, or it is none.
    """
    if not 0 < len(key) <= MAX_KEY or not key.isprintable():
        raise RequestInvalid(f"Idempotency-Key has 1 to {MAX_KEY} printable characters", field="Idempotency-Key")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{account}\0{key}"[:200].replace("\0", "/"),)
        )
    table = idempotent_request
    same = (table.c.account == account) & (table.c.key == key)
    row = connection.execute(select(table).where(same & (table.c.at > now - KEPT_SECONDS))).first()
    if row is None:
        return None
    if row.request != request:
        raise RequestInvalid(
            "Idempotency-Key was used for another request: take a new one for each request",
            code=422,
            kind="invalid_request",
            field="Idempotency-Key",
        )
    return Answer(row.status, json.loads(row.headers), row.body.encode())


def note(connection: Connection, account: str, key: str, *, request: str, answer: Answer, now: float) -> None:
    """Keep what is answered, in the transaction of what it answers; forget what is older than a day."""
    table = idempotent_request
    connection.execute(delete(table).where(table.c.at <= now - KEPT_SECONDS))
    connection.execute(
        insert(table).values(
            account=account, key=key, request=request, status=answer.status, headers=json.dumps(dict(answer.headers)),
            body=answer.body.decode(), at=now,
        )
    )  # fmt: skip
