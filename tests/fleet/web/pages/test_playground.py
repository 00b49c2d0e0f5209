"""The playground asks as the gateway does: a device, a group or a bundle, and says who answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from edge_bundle.broker import parse_broker
from fleet.access.roles import Role
from fleet.store import audit
from fleet.store.database import Database, parse_database
from tests.agent.device import sealed
from tests.broker import Broker, find_mosquitto
from tests.fleet.gateway.stage import make_device
from tests.fleet.web.stage import PASSWORD, Clock, add_account, csrf_of, fill, open_console

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(parse_database(f"sqlite:///{tmp_path_factory.mktemp('playground')}/fleet.db"))
    made.create()
    fill(made)
    add_account(made, "prompter", Role.PROMPTER)
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Signed in; ``kitchen-1`` and ``kitchen-2`` are there to answer, ``empty-1`` has no model."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    directory = tmp_path_factory.mktemp("devices")
    broker = Broker(directory / "broker")
    broker.start()
    devices = [make_device(directory, broker, f"kitchen-{n}", sealed(), ["kitchens"]) for n in (1, 2)]
    devices.append(make_device(directory, broker, "empty-1", None))
    with open_console(database, Clock(), broker=parse_broker(broker.url)) as made:
        csrf = csrf_of(made.get("/sign-in").text)
        made.post("/sign-in", data={"name": "prompter", "password": PASSWORD, "csrf": csrf})
        yield made
    for device in devices:
        device.stop()
    broker.stop()


def answer(browser: TestClient, **fields: str) -> str:
    """What stands in the answer, or in place of it."""
    csrf = csrf_of(browser.get("/playground").text)
    page = browser.post("/playground", data={"csrf": csrf, "prompt": "count 3", **fields}).text
    return page.partition('aria-live="polite">')[2].partition("</div>")[0] or page


@pytest.mark.parametrize("target", ["toy", "toy@1.0.0", "group:kitchens", "device:kitchen-2"])
def test_whom_the_gateway_knows_is_asked_and_named(browser: TestClient, target: str) -> None:
    text = answer(browser, target=target)
    assert text.endswith("0 1 2 ")
    assert "kitchen-2 answers" in text if target.startswith("device") else "kitchen-" in text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target": "device:kitchen-9"}, "did you mean &#39;device:kitchen-"),
        ({"target": "kitchen-1"}, "did you mean &#39;device:kitchen-1&#39;?"),
        ({"target": "device:empty-1"}, "the device empty-1 has no model"),
        ({"target": ""}, "say who is asked: device:NAME, group:NAME or a bundle"),
        ({"target": "toy", "prompt": " "}, "say something to it"),
        ({"target": "toy", "max_tokens": "many"}, "tokens are a number from 1 to 4096"),
        ({"target": "toy", "prompt": "x" * 40_000}, "32,000 characters at most"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(browser: TestClient, fields: dict[str, str], words: str) -> None:
    assert words in answer(browser, **fields)


def test_what_a_device_says_is_text(browser: TestClient) -> None:
    assert "<script>" not in answer(browser, target="toy", prompt="echo <script>alert(1)</script>")


def test_who_asked_whom_is_written_down_and_not_what(browser: TestClient, database: Database, tmp_path: Path) -> None:
    answer(browser, target="group:kitchens", prompt="a secret of mine")
    with database.read() as connection:
        line = audit.entries(connection, subject="group:kitchens")[-1]
        everything = audit.entries(connection)
    assert (line.actor, line.action) == ("prompter", "prompt")
    assert "secret" not in repr(everything)


def test_the_list_offers_bundles_groups_and_devices(browser: TestClient) -> None:
    page = browser.get("/playground").text
    for each in ("model", "model@1.0.0", "group:simulated", "device:sim-1"):
        assert f'<option value="{each}">' in page, each
    # Who is offline is not offered.
    assert "device:sim-0" not in page
