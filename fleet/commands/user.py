"""``edge-fleet user``: accounts of the console and the API."""

from __future__ import annotations

import argparse
import getpass
import sys
import time

from msgspec import to_builtins

from contract.errors import UsageError
from fleet import administration
from fleet.access.roles import PERMITS, Role, check_name, read_roles
from fleet.commands.context import add_database, opened, operator, print_json, print_table, when
from fleet.commands.user_tokens import create_token, list_tokens, revoke_token
from fleet.operations import Actor
from fleet.store import accounts
from fleet.store.database import Database

MAX_INPUT = 4096
"""Characters of a line with a password."""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("create", "make an account"),
        ("roles", "give an account other roles"),
        ("password", "give an account another password; its sessions end"),
        ("disable", "let an account in no more: its sessions end, its tokens do not work"),
        ("enable", "let it in again"),
        ("list", "all accounts"),
        ("token", "make a token with which a program may what the account may; it is printed once"),
        ("tokens", "all tokens, without their secrets"),
        ("revoke", "take a token away"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        if name == "revoke":
            action.add_argument("id", type=int, metavar="ID", help="its number in `user tokens`")
        elif name not in ("list", "tokens"):
            action.add_argument("name", metavar="NAME")
        if name == "token":
            action.add_argument("label", metavar="WHAT-FOR", help="such as nightly-report")
            action.add_argument("--expires", default="90d", metavar="DURATION", help="how long it holds; default 90d")
        if name in ("create", "roles"):
            action.add_argument(
                "--role", action="append", default=[], metavar="ROLE", help=f"{', '.join(Role)}; may be repeated"
            )
        if name in ("create", "password"):
            action.add_argument(
                "--password-stdin", action="store_true", help="read the password from standard input, not the terminal"
            )
        add_database(action)
    roles = "\n".join(f"  {role:<9} {', '.join(sorted(PERMITS[role]))}" for role in Role)
    parser.epilog = (
        f"roles and what they permit:\n{roles}\nThe author of a rollout does not approve it, whatever the role.\n\n"
        "examples:\n"
        "  edge-fleet user create ann --role admin\n"
        "  edge-fleet user create bo --role operator --password-stdin < password\n"
        "  edge-fleet user roles bo --role operator --role approver\n"
        "  edge-fleet user disable bo\n"
        "  edge-fleet user token bo nightly-report --expires 30d\n"
        "  curl -H \"Authorization: Bearer $TOKEN\" 'http://127.0.0.1:8080/api/v1/devices?where=online=false'"
    )


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    with opened(arguments) as database:
        others = {"list": _list, "token": create_token, "tokens": list_tokens, "revoke": revoke_token}
        if arguments.action in others:
            return others[arguments.action](database, arguments)
        _change(database, arguments)
        with database.read() as connection:
            found = accounts.find(connection, arguments.name)
    if arguments.json:
        print_json(to_builtins(found))
    else:
        state = "disabled" if found.disabled else "enabled"
        print(f"{found.name} is {state}, with the role{'s'[: len(found.roles) > 1]} {', '.join(found.roles)}")
    return 0


def _list(database: Database, arguments: argparse.Namespace) -> int:
    with database.read() as connection:
        found = accounts.every(connection)
    if arguments.json:
        print_json({"accounts": to_builtins(found)})
        return 0
    rows = [
        [each.name, ", ".join(each.roles), "disabled" if each.disabled else "", each.issuer, when(each.created_at)]
        for each in found
    ]
    print_table(["NAME", "ROLES", "STATE", "VOUCHED FOR BY", "MADE"], rows)
    return 0


def _change(database: Database, arguments: argparse.Namespace) -> None:
    name, action, actor, now = arguments.name, arguments.action, Actor(operator()), time.time()
    roles = read_roles(arguments.role) if action in ("create", "roles") else ()
    password = None
    if action in ("create", "password"):
        password = administration.hashed(_read_password(check_name(name), stdin=arguments.password_stdin), name)
    with database.write() as connection:
        if action == "create":
            administration.create(connection, name, roles, actor, now, password=password)
        elif action == "roles":
            administration.set_roles(connection, name, roles, actor, now)
        elif action == "password" and password is not None:
            administration.set_password(connection, name, password, actor, now)
        else:
            administration.set_disabled(connection, name, action == "disable", actor, now)


def _read_password(name: str, *, stdin: bool) -> str:
    if stdin:
        return sys.stdin.readline(MAX_INPUT).rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("not a terminal: give the password with --password-stdin")
    first = getpass.getpass(f"password of {name}: ")
    if getpass.getpass("once more: ") != first:
        raise UsageError("the two passwords differ")
    return first
