"""A console over a small fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from fleet.access.roles import Role
from fleet.store.database import Database, parse_database
from tests.fleet.web.stage import Clock, add_account, fill, open_console, program, token_of

Ask = Callable[[str], TestClient]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Database]:
    """Twelve devices in SQLite, and an account of every role, named by it."""
    made = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    made.create()
    fill(made)
    for role in Role:
        add_account(made, str(role), role)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def console(small: Database, clock: Clock) -> TestClient:
    return open_console(small, clock)


@pytest.fixture
def ask(small: Database, console: TestClient) -> Ask:
    """A program with a token of the account of a role."""
    return lambda name: program(console, token_of(small, name))
