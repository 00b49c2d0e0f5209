"""Who may ask, and how much."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from contract.system.command_line import main
from fleet.cli import COMMANDS, DESCRIPTION
from fleet.gateway.keys import KeyRing, hash_key
from fleet.store import audit
from fleet.store.database import Database, parse_database
from fleet.store.key_store import KeyStore
from tests.agent.device import Device
from tests.broker import Broker
from tests.fleet.gateway.raw import chat, send
from tests.fleet.gateway.stage import Stage, serving
from tests.fleet.waiting import until

pytestmark = pytest.mark.broker


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    made.create()
    yield made
    made.close()


@pytest.fixture
def stage(shared_devices: dict[str, Device], shared_broker: Broker, database: Database) -> Iterator[Stage]:
    with serving(shared_devices, shared_broker, KeyRing(KeyStore(database))) as made:
        yield made


class Command:
    def __init__(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = str(database.url)
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        status = main("edge-fleet", DESCRIPTION, COMMANDS, ["token", *words, "--database", self.url])
        told = self._capsys.readouterr()
        return status, told.out.strip(), told.err.strip()

    def create(self, *words: str) -> str:
        status, key, _ = self("create", *words)
        assert status == 0
        return key


@pytest.fixture
def command(database: Database, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(database, capsys)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_without_a_key_that_is_known_nobody_is_let_in(stage: Stage, command: Command) -> None:
    for headers in ({}, {"authorization": "Basic abc"}, {"authorization": "Bearer "}, bearer("ebk-no"), bearer("\xff")):
        for path, body in (("/v1/models", None), ("/v1/chat/completions", chat()), ("/v1/completions", {})):
            reply = send(stage.server.port, path, body, headers=headers)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert (reply.error["type"], reply.error["code"]) == ("invalid_request_error", "invalid_api_key")
    reply = send(stage.server.port, "/v1/models", None, headers=bearer("eft_a-token-of-an-account"))
    assert "this is an account's token for /api/v1" in reply.error["message"]
    # Made while the gateway runs: it holds at once.
    key = command.create("new")
    assert send(stage.server.port, "/v1/chat/completions", chat(), headers=bearer(key)).status == 200
    with openai.OpenAI(base_url=stage.url, api_key=key, max_retries=0) as client:
        assert client.chat.completions.create(**chat()).choices[0].message.content == "0 1 "


def test_a_key_that_was_revoked_or_has_expired_is_refused(stage: Stage, command: Command, database: Database) -> None:
    key = command.create("gone")
    assert send(stage.server.port, "/v1/models", headers=bearer(key)).status == 200
    assert command("revoke", "gone") == (0, "revoked gone", "")
    until(lambda: send(stage.server.port, "/v1/models", headers=bearer(key)).status == 401, "the key to be refused")
    assert "was revoked" in send(stage.server.port, "/v1/models", headers=bearer(key)).error["message"]
    late = command.create("late", "--expires", "1ms")
    assert "has expired" in send(stage.server.port, "/v1/models", headers=bearer(late)).error["message"]
    with database.read() as connection:
        lines = audit.entries(connection)
    assert [(each.action, each.subject) for each in lines] == [
        ("token.create", "token gone"), ("token.revoke", "token gone"), ("token.create", "token late")
    ]  # fmt: skip
    assert key not in json.dumps([each.detail for each in lines])


def test_a_key_may_ask_what_it_is_for(stage: Stage, command: Command) -> None:
    key = command.create("kiosk", "--models", "group:kitchens", "device:desk-*")
    with openai.OpenAI(base_url=stage.url, api_key=key, max_retries=0) as client:
        assert client.chat.completions.create(**chat("group:kitchens")).model == "toy@1.0.0"
        assert [each.id for each in client.models.list()] == ["group:kitchens", "device:desk-1"]
        for model in ("toy", "device:kitchen-1", "device:nobody"):
            with pytest.raises(openai.PermissionDeniedError) as told:
                client.chat.completions.create(**chat(model))
            assert (told.value.code, told.value.param) == ("model_not_allowed", "model")
            with pytest.raises(openai.PermissionDeniedError):
                client.models.retrieve(model)


def test_quotas_are_kept_and_told_in_headers(stage: Stage, command: Command, database: Database) -> None:
    key = command.create("slow", "--requests-per-day", "3", "--tokens-per-day", "1000")
    first = send(stage.server.port, "/v1/chat/completions", chat(max_tokens=5), headers=bearer(key))
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    # What a request asks for counts too, whatever becomes of it; what is let in by nobody does not.
    assert send(stage.server.port, "/v1/chat/completions", {"model": 5}, headers=bearer(key)).status == 400
    assert send(stage.server.port, "/v1/models", headers=bearer(key)).status == 200
    with openai.OpenAI(base_url=stage.url, api_key=key, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as told:
            client.chat.completions.create(**chat())
    assert (told.value.type, told.value.code) == ("requests", "rate_limit_exceeded")
    assert int(told.value.response.headers["retry-after"]) > 0
    assert told.value.response.headers["x-ratelimit-remaining-requests"] == "0"

    def listed() -> dict[str, object]:
        return json.loads(command("list", "--json")[1])

    until(lambda: listed()["today"] == {"requests": 3, "tokens": 4}, "what was used to be written down")
    # Another process on the same database knows it.
    with serving(stage.devices, stage.broker, KeyRing(KeyStore(database))) as other:
        until(
            lambda: send(other.server.port, "/v1/models", headers=bearer(key)).status == 429, "the other one to know it"
        )


def test_tokens_run_out(stage: Stage, command: Command) -> None:
    key = command.create("wordy", "--tokens-per-day", "4")
    assert send(stage.server.port, "/v1/chat/completions", chat(), headers=bearer(key)).status == 200
    reply = send(stage.server.port, "/v1/chat/completions", chat(), headers=bearer(key))
    assert reply.status == 429
    assert reply.error["type"] == "tokens"
    assert "4 tokens a day" in reply.error["message"]


def test_the_database_has_no_key_and_the_list_shows_none(command: Command, database: Database) -> None:
    key = command.create("mine", "--requests-per-minute", "60")
    assert key.startswith("ebk-")
    assert len(key) > 40
    _, table, _ = command("list")
    assert "60 requests per minute" in table
    assert "valid" in table
    assert key not in table
    assert hash_key(key) not in command("list", "--json")[1]
    path = database.file
    assert path is not None
    database.close()
    assert key.encode() not in b"".join(each.read_bytes() for each in path.parent.glob("fleet.db*"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("create", "no spaces"), "cannot be a token's name"),
        (("create", "x", "--requests-per-day", "0"), "a number from 1 on"),
        (("create", "x", "--expires", "soon"), "is not a duration"),
        (("revoke", "nobody"), "there is no token 'nobody'"),
    ],
)
def test_what_makes_no_sense_is_refused(command: Command, words: tuple[str, ...], text: str) -> None:
    status, _, told = command(*words)
    assert status == 2
    assert text in told


def test_keys_that_are_known_go_on_while_the_database_is_away(
    shared_devices: dict[str, Device], shared_broker: Broker, database: Database, command: Command
) -> None:
    key = command.create("steady")
    path = database.file
    assert path is not None
    with serving(shared_devices, shared_broker, KeyRing(KeyStore(database))) as stage:
        assert send(stage.server.port, "/v1/models", headers=bearer(key)).status == 200
        database.close()
        aside = {each: each.read_bytes() for each in path.parent.glob("fleet.db*")}
        for each in aside:
            each.unlink()
        path.mkdir()
        until(lambda: send(stage.server.port, "/healthz").json["status"] == "degraded", "the trouble to be seen")
        assert send(stage.server.port, "/v1/chat/completions", chat(), headers=bearer(key)).status == 200
        reply = send(stage.server.port, "/v1/models", headers=bearer("ebk-unknown"))
        assert reply.status == 503
        assert "retry-after" in reply.headers
        path.rmdir()
        for each, data in aside.items():
            each.write_bytes(data)
        until(lambda: send(stage.server.port, "/healthz").json["status"] == "ok", "the database to be back")
