"""Server-sent events, over a real connection."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fleet import operations
from fleet.http.app import make_app
from fleet.http.server import Server, listen
from fleet.operations import Actor
from fleet.rollout.spec import read_spec
from fleet.store import audit
from fleet.store.database import Database, parse_database
from fleet.web import stream
from fleet.web.app import Console
from fleet.web.settings import Settings
from tests.fleet.web.fleet_in_time import FleetInTime
from tests.fleet.web.stage import SPEC, Clock, token_of


@pytest.fixture
def url(small: Database, clock: Clock) -> Iterator[str]:
    server = Server(make_app([Console(Settings(database=small, clock=clock))]), listen("127.0.0.1", 0))
    server.start()
    yield server.url
    server.stop()


@contextmanager
def listening(url: str, token: str, last: str | None = None) -> Iterator[Iterator[dict[str, Any]]]:
    """Events as they come."""
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
    if last is not None:
        request.add_header("last-event-id", last)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")

        def events() -> Iterator[dict[str, Any]]:
            found: dict[str, Any] = {}
            for raw in response:
                line = raw.decode().rstrip("\n")
                if not line:
                    if "event" in found:
                        yield found
                    found = {}
                elif not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    found[name] = json.loads(value) if name == "data" else value

        # The first comment says that what happens from here on is heard.
        assert response.readline().startswith(b": ")
        yield events()


def pin(database: Database, pinned: bool) -> None:
    with database.write() as connection:
        operations.change_device(connection, "sim-1", Actor("ann"), 5.0, pinned=pinned)


def test_what_happens_is_heard_and_what_was_missed_comes_after(url: str, small: Database) -> None:
    token = token_of(small, "viewer")
    with listening(f"{url}/api/v1/stream", token) as events:
        pin(small, True)
        first = next(events)
        assert (first["event"], first["data"]["subject"], first["data"]["actor"]) == ("audit", "sim-1", "ann")
    pin(small, False)
    pin(small, True)
    with listening(f"{url}/api/v1/stream", token, last=first["id"]) as events:
        missed = [next(events)["data"]["detail"]["pinned"] for _ in range(2)]
    assert missed == [False, True]


def test_who_missed_too_much_is_told_to_look_again(url: str, small: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_MISSED", 3)
    token = token_of(small, "viewer")
    for last in ("1-0", "99999-0"):
        request = urllib.request.Request(
            f"{url}/api/v1/stream", headers={"authorization": f"Bearer {token}", "last-event-id": last}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.readline() == b"event: reset\n"


def test_a_rollout_is_followed(url: str, small: Database) -> None:
    with small.write() as connection:
        number = operations.start(connection, read_spec(SPEC), None, Actor("ann"), 5.0).rollout.id
    with listening(f"{url}/api/v1/stream?rollout={number}", token_of(small, "viewer")) as events:
        assert next(event for event in events if event["event"] == "rollout")["data"]["state"] == "running"
        with small.write() as connection:
            operations.steer(connection, number, "pause", Actor("ann"), 6.0)
        assert next(event for event in events if event["event"] == "state")["data"] == {"state": "paused"}


def test_samples_of_a_device_are_rates(tmp_path: Any) -> None:
    database = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    database.create()
    fleet = FleetInTime(database, 2, end=1_800_000_000.0)
    fleet.pass_time(5)
    watched = stream.Watched(fleet.devices[0].name, None)
    with database.read() as connection:
        stream.begin(connection, watched, None)
        assert stream.look(connection, watched) == []
        assert watched.lines == audit.last_id(connection)
    fleet.pass_time(1)
    with database.read() as connection:
        (frame,) = stream.look(connection, watched)
    point = json.loads(frame.partition(b"data: ")[2])
    assert frame.startswith(b"event: sample\n")
    assert point["tokens_per_second"] == pytest.approx(20.0)
    assert 20 < point["requests_per_minute"] < 90
    fleet.close()
    database.close()


@pytest.mark.parametrize(
    ("query", "status"), [("?device=none", 404), ("?rollout=77", 404), ("?rollout=x", 400), ("?other=1", 400)]
)
def test_a_mistake_is_answered_in_json(url: str, small: Database, query: str, status: int) -> None:
    token = token_of(small, "viewer")
    request = urllib.request.Request(f"{url}/api/v1/stream{query}", headers={"authorization": f"Bearer {token}"})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=30)
    assert raised.value.code == status
    assert json.loads(raised.value.read())["error"]["code"] == status


def test_nobody_listens_without_saying_who(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{url}/api/v1/stream", timeout=30)
    assert raised.value.code == 401
