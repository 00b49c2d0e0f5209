"""A whole service whose database is gone for a while: prompts go on, pages say so, and everything resumes by itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from contract.system.command_line import main
from fleet.access.roles import Role
from fleet.cli import COMMANDS, DESCRIPTION
from fleet.store.database import Database, parse_database
from fleet.web.identity import cookie_name
from fleet.web.sign_in import begin_session
from tests.broker import Broker, free_port
from tests.fleet.simulate.links import living
from tests.fleet.stage import load, make_devices, start, wait_for_devices, wait_for_state
from tests.fleet.waiting import until
from tests.fleet.web.stage import add_account, token_of
from tests.postgres import Postgres

pytestmark = pytest.mark.broker


class Answer(NamedTuple):
    status: int
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """A service in a process of its own with every role, asked over HTTP."""

    def __init__(self, database_url: str, broker: Broker, log: Path) -> None:
        self.log = log
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "fleet.cli", "serve", "--roles", "controller,ingest,web,gateway"]
        place = ["--database", database_url, "--broker", broker.url, "--listen", self.url.removeprefix("http://")]
        with log.open("ab") as file:
            self.process = subprocess.Popen([*command, *place], stdout=file, stderr=file, stdin=subprocess.DEVNULL)

    def ask(self, path: str, key: str = "", body: Any = None, *, session: str = "") -> Answer:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if session:
            headers["Cookie"] = f"{cookie_name(False)}={session}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {**headers, "Content-Type": "application/json"} if data else headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode())

    def health(self) -> Answer | None:
        """None while it does not listen."""
        try:
            return self.ask("/healthz")
        except OSError:
            return None


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    made = Database(parse_database(postgres.create("gone_under_a_site")))
    made.create()
    yield made
    made.close()


@pytest.fixture
def site(database: Database, broker: Broker, tmp_path: Path) -> Iterator[Site]:
    made = Site(database.url.render_as_string(hide_password=False), broker, tmp_path / "serve.log")
    yield made
    made.process.terminate()
    assert made.process.wait(60) == 0


def test_a_service_whose_database_is_gone(
    postgres: Postgres, database: Database, broker: Broker, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    add_account(database, "ann", Role.ADMIN)
    token = token_of(database, "ann")
    session = begin_session(database, "ann", address="127.0.0.1", previous="", now=time.time())
    assert main("edge-fleet", DESCRIPTION, COMMANDS, ["token", "create", "app", "--database", database.name]) == 0
    key = capsys.readouterr().out.split()[0]
    question = {"model": "device:sim-1", "messages": [{"role": "user", "content": "count"}]}
    devices = make_devices(4, pace=0.2)
    with living(devices, broker.address):
        wait_for_devices(database, len(devices))
        assert site.ask("/v1/chat/completions", key, question).status == 200
        assert "sim-1" in site.ask("/devices", session=session).body
        assert "sim-1" in site.ask("/devices", session=session).body
        number = start(database, "2.0.0", waves=["1", "100%"])
        until(lambda: load(database, number).waves[0].state != "pending", "the first wave to open")
        postgres.stop()
        try:
            until(lambda: (found := site.health()) is not None and found.status == 503, "the service to say so")
            told = site.ask("/healthz").json
            assert "cannot be used" in told["problems"]["database"]
            until(lambda: "service" in site.ask("/healthz").json["warnings"], "the loop to say so")
            refused = site.ask("/api/v1/devices", token)
            assert (refused.status, refused.json["error"]["type"]) == (503, "unavailable")
            page = site.ask("/devices", session=session)
            assert (page.status, "cannot be used" in page.body) == (503, True)
            # A key that is known goes on, and so do the devices.
            assert site.ask("/v1/chat/completions", key, question).status == 200
        finally:
            postgres.start()
        assert wait_for_state(database, number, "done", "paused", "rolled_back").state == "done"
        until(lambda: site.ask("/healthz").json["status"] == "ok", "everything to be well again")
        assert site.ask("/api/v1/devices", token).status == 200
        assert "edge_fleet_leads 1" in site.ask("/metrics").body
    assert all(device.installed == ["model@2.0.0"] for device in devices)
    assert "Traceback" not in site.log.read_text()
