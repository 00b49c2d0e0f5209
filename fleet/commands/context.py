"""What the commands share: which database, who is asking, and how things are printed."""

from __future__ import annotations

import argparse
import getpass
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from contract.errors import printable
from fleet.store.database import Database, parse_database

DATABASE_ENVIRONMENT = "EDGE_FLEET_DATABASE"
USER_ENVIRONMENT = "EDGE_FLEET_USER"
DEFAULT_DATABASE = "sqlite:///fleet.db"


def add_database(parser: argparse.ArgumentParser) -> None:
    """The option that says which database."""
    parser.add_argument(
        "--database",
        metavar="URL",
        default=os.environ.get(DATABASE_ENVIRONMENT, DEFAULT_DATABASE),
        help="sqlite:///FILE or postgresql://user@host/name "
        f"(default: {DATABASE_ENVIRONMENT}, else {DEFAULT_DATABASE})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def find_database(arguments: argparse.Namespace) -> Database:
    """The database that the options name, unopened.

    Raises:
        UsageError: its URL is none.
    """
    return Database(parse_database(arguments.database))


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Database]:
    """The same, seen to be there and of our version.

    Raises:
        ConfigInvalid: it is not. UsageError, StoreBroken, SourceUnavailable.
    """
    database = find_database(arguments)
    try:
        database.check()
        yield database
    finally:
        database.close()


def operator() -> str:
    """Who is asking, for the audit log: the login name. There are no accounts yet, so this is no proof."""
    named = os.environ.get(USER_ENVIRONMENT) or os.environ.get("SUDO_USER")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def print_json(document: Any) -> None:
    print(json.dumps(document, ensure_ascii=False), flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; nothing that a device says steers the terminal."""
    cells = [[printable(cell) or "-" for cell in row] for row in rows]
    widths = [max(len(row[number]) for row in [list(head), *cells]) for number in range(len(head))]
    for row in [list(head), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def when(seconds: float | None) -> str:
    """A time for people, in UTC."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "unknown"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
