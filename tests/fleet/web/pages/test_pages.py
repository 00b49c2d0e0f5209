"""Pages as a browser without scripts has them: everything is read, and everything is done, by links and forms."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from fleet.access.roles import Role
from fleet.store import audit, catalogue, rollouts
from fleet.store.database import Database, parse_database
from fleet.web.assets import asset_url, assets
from tests.fleet.web.fleet_in_time import FleetInTime, tell_a_story
from tests.fleet.web.stage import PASSWORD, Clock, add_account, browser, csrf_of, fill, open_console

SignedIn = Callable[[str], TestClient]


@pytest.fixture
def signed_in(console: TestClient) -> SignedIn:
    """A browser of its own for each account."""

    def sign_in(name: str) -> TestClient:
        made = browser(console.app)
        csrf = csrf_of(made.get("/sign-in").text)
        assert made.post("/sign-in", data={"name": name, "password": PASSWORD, "csrf": csrf}).status_code == 303
        return made

    return sign_in


def text_of(page: str) -> str:
    """What is read of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.partition("<main")[2])).split())


def forms_of(page: str) -> list[tuple[str, dict[str, str]]]:
    """Where forms are sent that change something, and the fields that they have from the beginning."""
    found = []
    for form in re.findall(r'<form[^>]*method="post".*?</form>', page, re.DOTALL):
        action = re.search(r'action="([^"]*)"', form)
        fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form))
        found.append((html.unescape(action[1]) if action else "", {k: html.unescape(v) for k, v in fields.items()}))
    return found


def send(client: TestClient, page: str, ending: str, **fields: str) -> Any:
    """Send the form of ``page`` whose address ends so, or that has none of its own, as a browser does."""
    (found,) = [
        (action, given)
        for action, given in forms_of(client.get(page).text)
        if (action.endswith(ending) if ending else not action)
    ]
    return client.post(found[0] or page, data=found[1] | fields)


def test_devices_are_filtered_and_paged_by_links(console: TestClient, small: Database, signed_in: SignedIn) -> None:
    fill(small, 120)
    viewer = signed_in("viewer")
    page = viewer.get("/devices").text
    seen: list[str] = []
    for _ in range(5):
        seen += re.findall(r'<a href="/devices/(sim-\d+)"', page)
        following = re.search(r'<a class="button" rel="next" href="([^"]+)"', page)
        if following is None:
            break
        page = viewer.get(html.unescape(following[1])).text
    assert seen == sorted(f"sim-{number}" for number in range(120))
    found = text_of(viewer.get("/devices", params={"where": "site=oslo and online=false"}).text)
    assert "1 of 120 devices, 0 online" in found
    wrong = viewer.get("/devices", params={"where": "sit=oslo"})
    assert (wrong.status_code, "did you mean `site`?" in text_of(wrong.text)) == (400, True)
    assert 'value="sit=oslo"' in wrong.text


def test_what_devices_say_is_text(console: TestClient, small: Database, signed_in: SignedIn) -> None:
    operator = signed_in("operator")
    evil = '<script>alert(1)</script>"onload=x'
    assert send(operator, "/devices/sim-1", "", what="labels", labels=f"site={evil}").status_code == 303
    for path in ("/devices", "/devices/sim-1", "/audit", "/devices?where=%3Cscript%3E"):
        page = operator.get(path).text
        assert "<script>alert" not in page
        assert "<script>" not in page
    assert evil in html.unescape(operator.get("/devices/sim-1").text)


def test_labels_and_pins_by_forms(small: Database, signed_in: SignedIn) -> None:
    operator = signed_in("operator")
    assert send(operator, "/devices/sim-1", "", what="labels", labels="rack=3\n\n owner=ann ").status_code == 303
    page = operator.get("/devices/sim-1?done=device").text
    assert "The device is changed." in page
    assert "owner=ann\nrack=3" in page
    assert "site=bergen" not in page
    assert send(operator, "/devices/sim-1", "", what="pin").status_code == 303
    assert "pinned" in text_of(operator.get("/devices/sim-1").text)
    wrong = send(operator, "/devices/sim-1", "", what="labels", labels="no label")
    assert (wrong.status_code, "is not NAME=VALUE" in text_of(wrong.text), "no label" in wrong.text) == (
        400,
        True,
        True,
    )


def test_a_rollout_from_plan_to_abort_by_forms(small: Database, signed_in: SignedIn) -> None:
    add_account(small, "both", Role.OPERATOR, Role.APPROVER)
    author, approver = signed_in("both"), signed_in("approver")
    asked = {"bundle": "model@2.0.0", "where": "site=oslo", "waves": "1, 100%", "approval": "yes"}
    page = author.get("/rollouts/new", params=asked)
    assert "model@2.0.0 on 6 devices in 2 waves" in text_of(page.text)
    ((action, fields),) = [each for each in forms_of(page.text) if each[0] == "/rollouts/new"]
    begun = author.post(action, data=fields)
    assert begun.headers["location"] == "/rollouts/1?done=start"
    shown = author.get("/rollouts/1").text
    assert "waiting approval" in text_of(shown)
    # Its author has no button for it, and a form made by hand does not help.
    assert not [each for each in forms_of(shown) if each[0].endswith("/approve")]
    refused = author.post("/rollouts/1/approve", data={"csrf": csrf_of(shown)})
    assert (refused.status_code, "another person has to approve" in refused.text) == (403, True)
    assert send(approver, "/rollouts/1", "/approve").headers["location"] == "/rollouts/1?done=approve"
    assert send(author, "/rollouts/1", "/pause").status_code == 303
    assert "paused by both" in text_of(author.get("/rollouts/1").text)
    assert send(author, "/rollouts/1", "/resume").status_code == 303
    assert send(author, "/rollouts/1", "/halt").status_code == 303
    assert "halted by both" in text_of(author.get("/rollouts/1").text)
    assert send(author, "/rollouts/1", "/abort").status_code == 303
    assert not [each for each in forms_of(author.get("/rollouts/1").text) if each[0].startswith("/rollouts/1/")]
    with small.read() as connection:
        lines = [(each.actor, each.action) for each in audit.entries(connection, subject="rollout 1")]
    assert lines == [
        ("both", "rollout.start"), ("approver", "rollout.approve"), ("both", "rollout.pause"),
        ("both", "rollout.resume"), ("both", "rollout.halt"), ("both", "rollout.abort"),
    ]  # fmt: skip


def test_a_button_of_an_older_page_does_nothing(small: Database, signed_in: SignedIn) -> None:
    operator = signed_in("operator")
    operator.get("/rollouts/new")
    csrf = csrf_of(operator.get("/rollouts/new").text)
    operator.post("/rollouts/new", data={"csrf": csrf, "bundle": "model@2.0.0", "where": "*"})
    old = operator.get("/rollouts/1").text
    (abort,) = [fields for action, fields in forms_of(old) if action.endswith("/abort")]
    assert send(operator, "/rollouts/1", "/pause").status_code == 303
    late = operator.post("/rollouts/1/abort", data=abort)
    assert (late.status_code, "was running when you looked, and is paused now" in late.text) == (409, True)


def test_a_wrong_specification_is_shown_with_all_its_faults(signed_in: SignedIn) -> None:
    page = signed_in("operator").get("/rollouts/new", params={"bundle": "model", "where": "*", "bake": "soon"})
    text = text_of(page.text)
    assert (page.status_code, "is not NAME@VERSION" in text, "'soon' is not a duration" in text) == (400, True, True)
    assert 'value="soon"' in page.text


ROLES: dict[str, set[str]] = {
    "viewer": set(),
    "prompter": {"/playground"},
    "operator": {"/playground", "/rollouts/new"},
    "approver": set(),
    "admin": {"/playground", "/rollouts/new", "/accounts"},
}


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_its_pages_and_buttons(role: str, small: Database, signed_in: SignedIn) -> None:
    client = signed_in(role)
    for path in ("/", "/devices", "/devices/sim-1", "/rollouts", "/bundles", "/audit", "/self"):
        assert client.get(path).status_code == 200
    page = client.get("/rollouts").text + client.get("/").text
    for path in ("/playground", "/rollouts/new", "/accounts"):
        allowed = path in ROLES[role]
        assert client.get(path).status_code == (200 if allowed else 403)
        assert (f'href="{path}"' in page) is allowed
    changes = [action for action, _ in forms_of(client.get("/devices/sim-1").text) if action != "/sign-out"]
    assert bool(changes) is ("/rollouts/new" in ROLES[role])


def test_what_is_not_there_is_said(signed_in: SignedIn) -> None:
    viewer = signed_in("viewer")
    for path, text in (
        ("/devices/none", "no device"), ("/rollouts/9", "no rollout 9"), ("/none", "no such page"),
        ("/rollouts/x", "no such page"),
    ):  # fmt: skip
        page = viewer.get(path)
        assert (page.status_code, text in page.text) == (404, True), path


def test_an_account_by_forms(small: Database, signed_in: SignedIn) -> None:
    admin = signed_in("admin")
    form = {"name": "new-one", "password": PASSWORD, "roles": "viewer"}
    csrf = csrf_of(admin.get("/accounts").text)
    assert admin.post("/accounts", data=form | {"csrf": csrf, "password": "short"}).status_code == 400
    assert admin.post("/accounts", data=form | {"csrf": csrf}).status_code == 303
    assert admin.post("/accounts", data=form | {"csrf": csrf}).status_code == 409
    assert (
        admin.post(
            "/accounts/new-one", data={"csrf": csrf, "what": "roles", "roles": ["operator", "approver"]}
        ).status_code
        == 303
    )
    assert signed_in("new-one").get("/rollouts/new").status_code == 200
    assert (
        admin.post(
            "/accounts/new-one", data={"csrf": csrf, "what": "password", "password": "another password"}
        ).status_code
        == 303
    )
    assert "account.password" in admin.get("/audit?subject=new-one").text


def test_files_are_named_by_their_digest_and_kept(console: TestClient) -> None:
    for name in assets():
        response = console.get(asset_url(name))
        assert (response.status_code, response.content) == (200, assets()[name].content)
        assert "immutable" in response.headers["cache-control"]
        assert console.get(f"/static/0123456789abcdef/{name}").status_code == 404
    page = console.get("/sign-in").text
    for url in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        assert console.get(url).status_code == 200
    # No inline script, style or handler, nothing of another host.
    assert not re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=|(?:src|href)=\"(?:https?:)?//", page)


def test_the_vendored_files_are_those_that_are_named() -> None:
    listed = [line.split() for line in assets()["VENDORED.txt"].content.decode().splitlines()]
    rows = {row[0]: row for row in listed if len(row) == 5 and len(row[4]) == 64}
    assert len(rows) == 4
    for name, row in rows.items():
        assert hashlib.sha256(assets()[name].content).hexdigest() == row[4]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Any:
    database = Database(parse_database(f"sqlite:///{tmp_path_factory.mktemp('story')}/fleet.db"))
    database.create()
    fleet = tell_a_story(database, end=1_800_000_000.0, count=16)
    yield fleet
    fleet.close()
    database.close()


def look(fleet: FleetInTime, name: str) -> TestClient:
    client = open_console(fleet.database, Clock(fleet.now))
    csrf = csrf_of(client.get("/sign-in").text)
    assert client.post("/sign-in", data={"name": name, "password": PASSWORD, "csrf": csrf}).status_code == 303
    return client


def test_gates_stand_beside_their_baseline(story: FleetInTime) -> None:
    text = text_of(look(story, "cleo").get("/rollouts/5").text)
    assert "Gates as they stand now" in text
    assert re.search(r"tokens/s passed 20 20 18 at least", text), text
    assert re.search(r"p95 time to first token passed [\d.]+ s [\d.]+ s [\d.]+ s at most", text), text
    halted = text_of(look(story, "cleo").get("/rollouts/3").text)
    assert "wave 1 does not hold: tokens/s: 0.55 times what it was, 0.90 at least" in halted
    assert "rolled back" in halted


def test_a_devices_plots_are_there_without_scripts(story: FleetInTime) -> None:
    page = look(story, "cleo").get(f"/devices/{story.devices[0].name}").text
    assert page.count("<polyline") >= 4
    text = text_of(page)
    assert "The last minutes as a table" in text
    assert "Tokens a second 20" in text


def test_bundles_have_their_evidence(story: FleetInTime) -> None:
    text = text_of(look(story, "cleo").get("/bundles").text)
    assert "perplexity source 12.41 bundle 12.86 ratio 1.036" in text
    assert "smollm2@1.2.0 revoked" in text
    with story.database.read() as connection:
        assert {each.reference for each in catalogue.entries(connection) if each.revoked} == {"smollm2@1.2.0"}
        assert len(rollouts.numbers(connection)) == 5


def test_the_chain_is_verified_on_the_page(story: FleetInTime) -> None:
    text = text_of(look(story, "cleo").get("/audit?verify=yes").text)
    assert re.search(r"\d+ lines, and the chain is whole", text)
    assert "controller" in text
