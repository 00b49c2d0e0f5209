"""A fleet in a database, and browsers and programs that ask its console."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from starlette.testclient import TestClient

from fleet import administration
from fleet.access.roles import Role
from fleet.http.app import make_app
from fleet.operations import Actor
from fleet.store import accounts, devices
from fleet.store.database import Database
from fleet.web.app import Console
from fleet.web.settings import Settings
from tests.fleet.simulate.device import SimulatedDevice

HOST = "http://localhost"
PASSWORD = "a password for tests"
SPEC = {"bundle": "model@2.0.0", "where": "*", "waves": ["1", "100%"]}

_hashed = administration.hashed(PASSWORD, "x")


class Clock:
    """Goes on when it is told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def fill(database: Database, count: int = 12) -> None:
    """Known devices, half of them in Oslo; the first one is offline."""
    updates = []
    for number in range(count):
        device = SimulatedDevice(f"sim-{number}")
        said = {each.topic: each.payload.decode() for each in device.birth(1.0)}
        documents = {name: said[name] for name in ("info", "health", "reported")}
        updates.append(devices.DeviceUpdate(device=device.name, at=1.0, online=number > 0, seen_at=2.0, **documents))
    with database.write() as connection:
        devices.take(connection, updates)
        for number in range(min(count, 12)):
            devices.change(connection, f"sim-{number}", labels={"site": ("oslo", "bergen")[number % 2]})


def add_account(database: Database, name: str, *roles: Role) -> None:
    with database.write() as connection:
        administration.create(connection, name, roles, Actor("test"), 1.0, password=_hashed)


def token_of(database: Database, name: str, *, expires: float | None = None) -> str:
    with database.write() as connection:
        return administration.create_token(connection, name, "test", Actor("test"), 1.0, expires=expires)


def open_console(database: Database, clock: Clock, **options: Any) -> TestClient:
    """A browser that nobody has signed in with."""
    settings = Settings(database=database, clock=clock, **options)
    return browser(TestClient(make_app([Console(settings)]), base_url=HOST).app, options.get("url") or HOST)


def browser(app: Any, url: str = HOST) -> TestClient:
    """Another one of the same console; it says where a form stands, as browsers do."""
    made = TestClient(app, base_url=url, follow_redirects=False)
    made.headers["origin"] = url
    return made


def program(client: TestClient, token: str) -> TestClient:
    """A program with a token: it has no cookies and no origin."""
    made = TestClient(client.app, base_url=HOST, follow_redirects=False)
    made.headers["authorization"] = f"Bearer {token}"
    return made


def csrf_of(text: str) -> str:
    """What the forms of a page bring along."""
    found = re.search(r'name="csrf" value="([^"]+)"', text)
    assert found is not None, text[:500]
    return found[1]


def names(accounts_: Iterable[accounts.Account]) -> list[str]:
    return [each.name for each in accounts_]
