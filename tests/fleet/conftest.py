"""Databases of both kinds, and a broker."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.store.database import Database, parse_database
from tests.broker import Broker, find_mosquitto
from tests.nats import NatsCluster
from tests.postgres import Postgres, find_postgres

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if find_postgres() is None:
        if os.environ.get("EDGE_REQUIRE_BROKER") == "1":
            pytest.fail("PostgreSQL is not installed: apt install postgresql-15")
        pytest.skip("PostgreSQL is not installed")
    server = Postgres()
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fleet.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create(f"fleet_{next(_numbers)}")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(parse_database(database_url))
    made.create()
    yield made
    made.close()


@pytest.fixture(scope="session")
def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three nodes, for everybody: each test has topics of its own, and leaves all of them running."""
    made = NatsCluster(tmp_path_factory.mktemp("nats"))
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def root() -> str:
    """What the topics of this test begin with; none of another test does."""
    return f"edge/t{next(_numbers)}"


@pytest.fixture(params=["mosquitto", "nats"])
def any_broker(request: pytest.FixtureRequest) -> Broker | NatsCluster:
    """A broker of each kind: with MQTT 5, and three nodes that speak MQTT 3.1.1."""
    found: Broker | NatsCluster = request.getfixturevalue(
        {"mosquitto": "broker", "nats": "nats_cluster"}[request.param]
    )
    return found


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()
