"""Tokens with which programs use the API: part of ``edge-fleet user``."""

from __future__ import annotations

import argparse
import time

from msgspec import to_builtins

from contract.errors import UsageError
from fleet import administration
from fleet.commands.context import operator, print_json, print_table, when
from fleet.operations import Actor
from fleet.rollout.durations import parse_duration
from fleet.store import accounts
from fleet.store.database import Database

MAX_LABEL = 64
"""Characters of what a token is for."""


def create_token(database: Database, arguments: argparse.Namespace) -> int:
    """Make one and print it, this once.

    Raises:
        UsageError: it is not said what for, or for how long. RequestInvalid: there is no such account.
    """
    if not 0 < len(arguments.label) <= MAX_LABEL or not arguments.label.isprintable():
        raise UsageError(f"say in 1 to {MAX_LABEL} characters what the token is for")
    try:
        expires = time.time() + parse_duration(arguments.expires)
    except ValueError as error:
        raise UsageError(f"--expires: {error}") from error
    with database.write() as connection:
        secret = administration.create_token(
            connection, arguments.name, arguments.label, Actor(operator()), time.time(), expires=expires
        )
    print_json({"token": secret, "expires": expires}) if arguments.json else print(secret)
    return 0


def list_tokens(database: Database, arguments: argparse.Namespace) -> int:
    """All of them, without their secrets."""
    with database.read() as connection:
        found = accounts.tokens(connection)
    if arguments.json:
        print_json({"tokens": to_builtins(found)})
        return 0
    rows = [
        [f"{each.id}", each.account, each.name, when(each.created_at), when(each.expires), when(each.used_at)]
        for each in found
    ]
    print_table(["ID", "ACCOUNT", "FOR", "MADE", "EXPIRES", "LAST USED"], rows)
    return 0


def revoke_token(database: Database, arguments: argparse.Namespace) -> int:
    """Take one away.

    Raises:
        RequestInvalid: there is none.
    """
    with database.write() as connection:
        gone = administration.revoke_token(connection, arguments.id, Actor(operator()), time.time())
    print_json(to_builtins(gone)) if arguments.json else print(f"token {gone.id} of {gone.account} is revoked")
    return 0
