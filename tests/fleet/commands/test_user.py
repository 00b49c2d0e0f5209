"""``edge-fleet user``: accounts, roles, passwords, tokens."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fleet.access.passwords import verify_password
from fleet.store import accounts, audit
from fleet.store.database import Database, parse_database
from tests.fleet.commands.test_commands import Run, run

__all__ = ["run"]

PASSWORD = "a password for tests"


@pytest.fixture
def database(run: Run, tmp_path: Path) -> Database:
    assert run("init").status == 0
    return Database(parse_database("sqlite:///fleet.db"))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))


def test_an_account_is_made_listed_and_disabled(run: Run, database: Database, typed: None) -> None:
    made = run("user", "create", "bo", "--role", "approver", "--role", "operator", "--password-stdin")
    assert made.out == "bo is enabled, with the roles operator, approver\n"
    with database.read() as connection:
        assert verify_password(PASSWORD, accounts.password_of(connection, "bo"))
    assert run("user", "roles", "bo", "--role", "viewer").out == "bo is enabled, with the role viewer\n"
    assert run("user", "disable", "bo").out == "bo is disabled, with the role viewer\n"
    (line,) = run("user", "list", "--json").json["accounts"]
    assert (line["name"], line["roles"], line["disabled"]) == ("bo", ["viewer"], True)
    assert "password" not in line
    assert run("user", "enable", "bo").status == 0
    with database.read() as connection:
        lines = audit.entries(connection, subject="bo")
    assert [(each.actor, each.action) for each in lines] == [
        ("ann", "account.create"), ("ann", "account.roles"), ("ann", "account.disable"), ("ann", "account.enable"),
    ]  # fmt: skip
    assert PASSWORD not in repr(lines)


def test_a_token_is_made_used_and_revoked(run: Run, database: Database, typed: None) -> None:
    run("user", "create", "bo", "--role", "viewer", "--password-stdin")
    secret = run("user", "token", "bo", "nightly", "--expires", "1d").out.strip()
    assert secret.startswith("eft_")
    (line,) = run("user", "tokens", "--json").json["tokens"]
    assert (line["account"], line["name"], secret in repr(line)) == ("bo", "nightly", False)
    assert run("user", "revoke", "1").out == "token 1 of bo is revoked\n"
    assert run("user", "tokens", "--json").json["tokens"] == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("create", "bo", "--role", "operater", "--password-stdin"), "did you mean operator?"),
        (("create", "bo", "--password-stdin"), "an account needs a role"),
        (("create", "b o", "--role", "viewer", "--password-stdin"), "cannot name an account"),
        (("create", "bo", "--role", "viewer"), "not a terminal: give the password with --password-stdin"),
        (("disable", "cy"), "there is no account 'cy'"),
        (("token", "cy", "x"), "there is no account 'cy'"),
        (("token", "cy", "x", "--expires", "soon"), "--expires: 'soon' is not a duration"),
        (("revoke", "7"), "there is no token 7"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    run: Run, database: Database, typed: None, words: tuple[str, ...], text: str
) -> None:
    found = run("user", *words)
    assert (found.status, text in found.err) == (2, True), found.err


def test_a_short_password_makes_no_account(run: Run, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    found = run("user", "create", "bo", "--role", "viewer", "--password-stdin")
    assert (found.status, "12 characters at least" in found.err) == (2, True)
    assert run("user", "list", "--json").json["accounts"] == []
