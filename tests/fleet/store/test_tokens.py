"""API keys in both databases."""

from __future__ import annotations

import pytest

from contract.errors import RequestInvalid
from fleet.gateway.quota import Bucket, Limits, Used
from fleet.store import tokens
from fleet.store.database import Database
from fleet.store.key_store import KeyStore
from fleet.store.tokens import TokenRow

NOW = 1_800_000_030.0
MINUTE = Bucket("kiosk", "minute", 1_800_000_000)
DAY = Bucket("kiosk", "day", 1_799_971_200)


def row(name: str, hash: str = "0" * 64) -> TokenRow:
    return TokenRow(name, hash, 1.0, "ann", 5.0, None, ("group:*",), Limits(requests_per_minute=3))


def test_a_key_is_kept_and_revoked_and_its_name_stays_taken(database: Database) -> None:
    with database.write() as connection:
        tokens.add(connection, row("kiosk"))
        assert tokens.revoke(connection, "kiosk", 9.0)
        assert not tokens.revoke(connection, "kiosk", 10.0)
    with database.read() as connection:
        assert tokens.rows(connection) == [row("kiosk")._replace(revoked_at=9.0)]
    with pytest.raises(RequestInvalid, match="already, or was"), database.write() as connection:
        tokens.add(connection, row("kiosk", "1" * 64))
    with pytest.raises(RequestInvalid, match="did you mean kiosk"), database.write() as connection:
        tokens.revoke(connection, "kiosc", 9.0)


def test_use_is_added_up_over_processes_and_forgotten_after_two_days(database: Database) -> None:
    one, other = KeyStore(database), KeyStore(database)
    assert one.exchange({}, NOW) == {}
    one.exchange({MINUTE: Used(1, 10), DAY: Used(1, 10)}, NOW)
    found = other.exchange({MINUTE: Used(2, 5), DAY: Used(2, 5)}, NOW)
    assert found == {MINUTE: Used(3, 15), DAY: Used(3, 15)}
    assert one.exchange({}, NOW) == found
    later = NOW + 3 * 86_400
    other.exchange({Bucket("x", "day", 1): Used(1, 1)}, later)
    assert one.exchange({}, NOW) == {}
