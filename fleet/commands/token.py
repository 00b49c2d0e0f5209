"""``edge-fleet token``: API keys of the gateway."""

from __future__ import annotations

import argparse
import time

from msgspec import structs

from contract.errors import UsageError
from contract.identifiers import is_identifier
from fleet.commands.context import add_database, opened, operator, print_json, print_table, when
from fleet.gateway.keys import hash_key, make_key
from fleet.gateway.quota import Limits, Used, starts
from fleet.rollout.durations import parse_duration
from fleet.store import audit, tokens
from fleet.store.database import Database
from fleet.store.tokens import TokenRow

MAX_LIMIT = 10**12

EXAMPLES = """\
examples:
  edge-fleet token create open-webui
  edge-fleet token create kiosk --models 'group:kiosks' --requests-per-minute 60 --tokens-per-day 200000 --expires 90d
  edge-fleet token list
  edge-fleet token revoke kiosk

A key is shown once, when it is made; its hash alone is kept. One that was revoked is refused within two seconds.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print it, once", description="make a key")
    create.add_argument("name", metavar="NAME", help="whose it is: 1 to 64 of A-Z a-z 0-9 _ . -")
    create.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="what it may ask ('group:kiosks', 'device:*', 'smollm2*'); default everything",
    )
    for field in structs.fields(Limits):
        words = field.name.replace("_", " ")
        create.add_argument(f"--{field.name.replace('_', '-')}", type=int, metavar="N", help=f"at most so many {words}")
    create.add_argument("--expires", metavar="DURATION", help="refuse it after so long: 90d")
    add_database(create)
    listed = actions.add_parser("list", help="all keys, and what they used today", description="all keys")
    add_database(listed)
    revoke = actions.add_parser("revoke", help="refuse a key from now on", description="refuse a key from now on")
    revoke.add_argument("name", metavar="NAME")
    add_database(revoke)


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    with opened(arguments) as database:
        if arguments.action == "create":
            return _create(database, arguments)
        return _list(database, arguments) if arguments.action == "list" else _revoke(database, arguments)


def _create(database: Database, arguments: argparse.Namespace) -> int:
    now = time.time()
    if not is_identifier(arguments.name):
        raise UsageError(f"{arguments.name!r} cannot be a token's name: use 1 to 64 of A-Z a-z 0-9 _ . -")
    values = {field.name: getattr(arguments, field.name) for field in structs.fields(Limits)}
    for name, value in values.items():
        if value is not None and not 1 <= value <= MAX_LIMIT:
            raise UsageError(f"--{name.replace('_', '-')} is a number from 1 on; to refuse a key, revoke it")
    try:
        expires = None if arguments.expires is None else now + parse_duration(arguments.expires)
    except ValueError as error:
        raise UsageError(f"--expires {error}") from error
    key = make_key()
    row = TokenRow(
        arguments.name, hash_key(key), now, operator(), expires, None, tuple(arguments.models), Limits(**values)
    )
    with database.write() as connection:
        tokens.add(connection, row)
        said = {name: value for name, value in values.items() if value is not None}
        detail = {"models": list(row.models), "expires": when(expires), **said}
        audit.record(
            connection, at=now, actor=operator(), action="token.create", subject=f"token {row.name}", detail=detail
        )
    if arguments.json:
        print_json({"name": row.name, "key": key})
    else:
        print(key)
    return 0


def _list(database: Database, arguments: argparse.Namespace) -> int:
    now = time.time()
    with database.read() as connection:
        rows = tokens.rows(connection)
        used = tokens.usage(connection, starts(now))
    today = {bucket.token: each for bucket, each in used.items() if bucket.window == "day"}
    if arguments.json:
        for row in rows:
            document = {name: value for name, value in row._asdict().items() if name not in ("hash", "limits")}
            mine = today.get(row.name, Used())
            print_json({**document, **structs.asdict(row.limits), "state": _state(row, now), "today": mine._asdict()})
        return 0
    table = []
    for row in rows:
        mine = today.get(row.name, Used())
        limits = [f"{value} {name.replace('_', ' ')}" for name, value in structs.asdict(row.limits).items() if value]
        cells = [row.name, _state(row, now), when(row.created_at), when(row.expires_at), " ".join(row.models) or "*"]
        table.append([*cells, ", ".join(limits), f"{mine.requests}", f"{mine.tokens}"])
    print_table(["NAME", "STATE", "MADE", "EXPIRES", "MODELS", "LIMITS", "REQUESTS TODAY", "TOKENS TODAY"], table)
    return 0


def _state(row: TokenRow, now: float) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "valid"


def _revoke(database: Database, arguments: argparse.Namespace) -> int:
    now = time.time()
    with database.write() as connection:
        changed = tokens.revoke(connection, arguments.name, now)
        if changed:
            audit.record(connection, at=now, actor=operator(), action="token.revoke", subject=f"token {arguments.name}")
    if arguments.json:
        print_json({"name": arguments.name, "revoked": True, "changed": changed})
    else:
        print(f"revoked {arguments.name}" if changed else f"{arguments.name} was revoked already")
    return 0
