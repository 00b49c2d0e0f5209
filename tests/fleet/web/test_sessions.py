"""Sessions of the console: cookies, rotation, expiry, CSRF, other sites, guessing."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from fleet.access.roles import Role
from fleet.access.secrets import csrf_token
from fleet.access.throttle import FREE_ATTEMPTS
from fleet.store import accounts, audit
from fleet.store.accounts import IDLE_SECONDS, MAX_SESSIONS, SESSION_SECONDS
from fleet.store.database import Database
from fleet.web.guard import HEADERS, POLICY
from fleet.web.pages.page import safe_next
from tests.fleet.web.stage import HOST, PASSWORD, SPEC, Clock, add_account, browser, csrf_of, open_console

COOKIE = "edge-fleet"


def sign_in(client: TestClient, name: str, password: str = PASSWORD, **fields: str) -> int:
    csrf = csrf_of(client.get("/sign-in").text)
    form = {"name": name, "password": password, "csrf": csrf} | fields
    return client.post("/sign-in", data=form).status_code


def is_in(client: TestClient) -> bool:
    return client.get("/devices").status_code == 200


def test_who_is_not_signed_in_is_asked_to_and_comes_back(console: TestClient) -> None:
    assert console.get("/").headers["location"] == "/sign-in"
    asked = console.get("/devices?where=site%3Doslo")
    assert (asked.status_code, asked.headers["location"]) == (303, "/sign-in?next=%2Fdevices%3Fwhere%3Dsite%253Doslo")
    page = console.get(asked.headers["location"]).text
    assert 'value="/devices?where=site%3Doslo"' in page
    form = {"name": "viewer", "password": PASSWORD, "csrf": csrf_of(page), "next": "/devices?where=site%3Doslo"}
    done = console.post("/sign-in", data=form)
    assert (done.status_code, done.headers["location"]) == (303, "/devices?where=site%3Doslo")
    assert is_in(console)


@pytest.mark.parametrize("text", ["https://evil.example", "//evil.example", "/\\evil.example", "evil", "/a\nb", ""])
def test_nobody_is_sent_elsewhere_after_signing_in(text: str) -> None:
    assert safe_next(text) == "/"
    assert safe_next("/rollouts/3?state=failed") == "/rollouts/3?state=failed"


def test_a_wrong_password_and_an_unknown_name_are_told_alike(console: TestClient, small: Database) -> None:
    csrf = csrf_of(console.get("/sign-in").text)
    told = []
    for name in ("viewer", "nobody-here"):
        response = console.post("/sign-in", data={"name": name, "password": "wrong password", "csrf": csrf})
        assert response.status_code == 401
        told.append(response.text.replace(name, "NAME"))
    assert told[0] == told[1]
    assert "name or password is wrong" in told[0]
    assert not is_in(console)


def test_the_cookie_is_for_us_alone(small: Database, clock: Clock) -> None:
    plain = open_console(small, clock)
    csrf = csrf_of(plain.get("/sign-in").text)
    response = plain.post("/sign-in", data={"name": "viewer", "password": PASSWORD, "csrf": csrf})
    cookie = response.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    for part in ("HttpOnly", "SameSite=lax", "Path=/"):
        assert part in cookie
    assert "Secure" not in cookie
    safe = open_console(small, clock, url="https://fleet.example.org")
    csrf = csrf_of(safe.get("/sign-in").text)
    response = safe.post("/sign-in", data={"name": "viewer", "password": PASSWORD, "csrf": csrf})
    assert response.headers["set-cookie"].startswith("__Host-edge-fleet=")
    assert "Secure" in response.headers["set-cookie"]
    assert response.headers["strict-transport-security"]
    assert safe.get("/devices").status_code == 200


def test_signing_in_begins_a_new_session_and_ends_the_old_one(console: TestClient, small: Database) -> None:
    other = browser(console.app)
    other.cookies.set(COOKIE, "chosen-by-an-attacker", domain="localhost.local", path="/")
    assert sign_in(other, "viewer") == 303
    first = other.cookies[COOKIE]
    assert first != "chosen-by-an-attacker"
    # Signed in already: the page leads on, so the form of before is sent again.
    csrf = other.post("/sign-in", data={}).status_code
    assert csrf == 403
    again = browser(console.app)
    again.cookies.set(COOKIE, first, domain="localhost.local", path="/")
    form = {"name": "operator", "password": PASSWORD, "csrf": csrf_token(first)}
    assert again.post("/sign-in", data=form).status_code == 303
    assert again.cookies.get(COOKIE) != first
    assert not is_in(other)


def test_a_session_ends_when_it_is_not_used_and_after_a_day(console: TestClient, clock: Clock) -> None:
    assert sign_in(console, "viewer") == 303
    clock.now += IDLE_SECONDS - 1
    assert is_in(console)
    clock.now += IDLE_SECONDS + 1
    assert not is_in(console)
    assert sign_in(console, "viewer") == 303
    begun = clock.now
    while clock.now < begun + SESSION_SECONDS - IDLE_SECONDS / 2:
        clock.now += IDLE_SECONDS / 2 - 1
        assert is_in(console) is (clock.now < begun + SESSION_SECONDS)
    clock.now = begun + SESSION_SECONDS + 1
    assert not is_in(console)


def test_signing_out_ends_this_session_or_all(console: TestClient, small: Database) -> None:
    here, there = browser(console.app), browser(console.app)
    assert (sign_in(here, "viewer"), sign_in(there, "viewer")) == (303, 303)
    cookie = here.cookies[COOKIE]
    here.post("/sign-out", data={"csrf": csrf_of(here.get("/devices").text)})
    here.cookies.set(COOKIE, cookie, domain="localhost.local", path="/")
    assert (is_in(here), is_in(there)) == (False, True)
    here.cookies.clear()
    assert sign_in(here, "viewer") == 303
    there.post("/sign-out", data={"csrf": csrf_of(there.get("/self").text), "everywhere": "yes"})
    assert not is_in(here)
    with small.read() as connection:
        actions = [each.action for each in audit.entries(connection, subject="viewer")]
    assert actions[-5:] == ["session.begin", "session.begin", "session.end", "session.begin", "session.end"]


def test_a_disabled_account_is_out_at_once(console: TestClient, small: Database) -> None:
    admin, viewer = browser(console.app), browser(console.app)
    assert (sign_in(admin, "admin"), sign_in(viewer, "viewer")) == (303, 303)
    csrf = csrf_of(admin.get("/accounts").text)
    assert admin.post("/accounts/viewer", data={"csrf": csrf, "what": "disable"}).status_code == 303
    assert not is_in(viewer)
    assert sign_in(viewer, "viewer") == 401
    assert admin.post("/accounts/viewer", data={"csrf": csrf, "what": "enable"}).status_code == 303
    assert sign_in(viewer, "viewer") == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "http://localhost:8601"},
    ],
)
def test_another_site_changes_nothing(console: TestClient, small: Database, headers: dict[str, str]) -> None:
    assert sign_in(console, "operator") == 303
    csrf = csrf_of(console.get("/devices/sim-1").text)
    form = {"csrf": csrf, "what": "pin"}
    refused = console.post("/devices/sim-1", data=form, headers=headers)
    assert (refused.status_code, "another site" in refused.text) == (403, True)
    api = console.patch("/api/v1/devices/sim-1", json={"pinned": True}, headers={"x-csrf-token": csrf} | headers)
    assert api.status_code == 403
    assert sign_in(browser(console.app), "operator", csrf="wrong") == 403
    assert console.get("/api/v1/devices/sim-1").json()["pinned"] is False
    assert console.post("/devices/sim-1", data=form).status_code == 303
    assert console.get("/api/v1/devices/sim-1").json()["pinned"] is True


def test_a_change_needs_the_token_of_the_page(console: TestClient) -> None:
    assert sign_in(console, "operator") == 303
    csrf = csrf_of(console.get("/devices/sim-1").text)
    other = browser(console.app)
    assert sign_in(other, "operator") == 303
    for wrong in ("", "x", csrf_of(other.get("/devices").text)):
        assert console.post("/devices/sim-1", data={"csrf": wrong, "what": "pin"}).status_code == 403
        response = console.post("/api/v1/rollouts", json=SPEC, headers={"x-csrf-token": wrong})
        assert (response.status_code, response.json()["error"]["type"]) == (403, "forbidden")
    assert console.post("/api/v1/rollouts", json=SPEC, headers={"x-csrf-token": csrf}).status_code == 201


def test_a_change_that_says_nothing_of_where_it_comes_from_is_refused(console: TestClient) -> None:
    assert sign_in(console, "operator") == 303
    csrf = csrf_of(console.get("/devices/sim-1").text)
    del console.headers["origin"]
    assert (
        "neither Origin nor Sec-Fetch-Site" in console.post("/devices/sim-1", data={"csrf": csrf, "what": "pin"}).text
    )
    form = {"csrf": csrf, "what": "pin"}
    assert console.post("/devices/sim-1", data=form, headers={"sec-fetch-site": "same-origin"}).status_code == 303


def test_guessing_is_slowed_by_account_and_address(console: TestClient, small: Database, clock: Clock) -> None:
    csrf = csrf_of(console.get("/sign-in").text)

    def attempt(name: str, password: str) -> tuple[int, str | None]:
        response = console.post("/sign-in", data={"name": name, "password": password, "csrf": csrf})
        return response.status_code, response.headers.get("retry-after")

    for _ in range(FREE_ATTEMPTS + 1):
        assert attempt("viewer", "wrong password") == (401, None)
    # Also the right one is not looked at now.
    assert attempt("viewer", PASSWORD) == (429, "2")
    assert attempt("operator", PASSWORD) == (429, "2")
    clock.now += 2.5
    assert attempt("viewer", "wrong password") == (401, None)
    assert attempt("viewer", PASSWORD) == (429, "4")
    clock.now += 4.5
    assert attempt("viewer", PASSWORD) == (303, None)
    with small.read() as connection:
        slowed = [each for each in audit.entries(connection) if each.action == "session.slowed"]
    assert [each.subject for each in slowed] == ["viewer"]


def test_sessions_of_one_account_are_bounded(small: Database) -> None:
    for number in range(MAX_SESSIONS + 5):
        with small.write() as connection:
            accounts.begin_session(connection, "viewer", f"{number:064d}", float(number))
    with small.read() as connection:
        alive = [accounts.in_session(connection, f"{n:064d}", 60.0) is not None for n in range(MAX_SESSIONS + 5)]
    assert (sum(alive), alive[:5]) == (MAX_SESSIONS, [False] * 5)


def test_every_answer_has_the_headers(console: TestClient) -> None:
    for path in ("/sign-in", "/devices", "/api/v1/self", "/nothing", "/api/v1/openapi.json", "/static/x/y.js"):
        response = console.get(path)
        for name, value in HEADERS:
            assert response.headers[name] == value, (path, name)
        assert response.headers["cache-control"] == "no-store"
    for word in ("unsafe-inline", "unsafe-eval", "*", "http:"):
        assert word not in POLICY


def test_a_password_is_changed_by_who_knows_it(console: TestClient, small: Database) -> None:
    other = browser(console.app)
    assert (sign_in(console, "viewer"), sign_in(other, "viewer")) == (303, 303)
    csrf = csrf_of(console.get("/self").text)

    def change(current: str, new: str) -> tuple[int, str]:
        response = console.post("/self/password", data={"csrf": csrf, "current": current, "password": new})
        return response.status_code, response.text

    status, text = change("wrong", "another password")
    assert (status, "the current password is wrong" in text) == (400, True)
    status, text = change(PASSWORD, "short")
    assert (status, "12 characters" in text) == (400, True)
    assert change(PASSWORD, "another password")[0] == 303
    assert (is_in(console), is_in(other)) == (True, False)
    assert sign_in(other, "viewer", "another password") == 303


def test_the_last_admin_stays_one(console: TestClient, small: Database) -> None:
    assert sign_in(console, "admin") == 303
    csrf = csrf_of(console.get("/accounts").text)
    for form in ({"what": "disable"}, {"what": "roles", "roles": "viewer"}):
        refused = console.post("/accounts/admin", data=form | {"csrf": csrf})
        assert (refused.status_code, "nobody could administer" in refused.text) == (409, True)
    add_account(small, "second", Role.ADMIN)
    assert console.post("/accounts/admin", data={"what": "roles", "roles": "viewer", "csrf": csrf}).status_code == 303
    assert console.get("/accounts").status_code == 403


def test_a_token_of_ones_own_is_shown_once_and_revoked(console: TestClient, small: Database) -> None:
    assert sign_in(console, "viewer") == 303
    csrf = csrf_of(console.get("/self").text)
    made = console.post("/self/tokens", data={"csrf": csrf, "label": "graphs", "lasts": "30d"}).text
    secret = made.partition('class="secret">')[2].partition("<")[0]
    assert secret.startswith("eft_")
    assert secret not in console.get("/self").text
    program = TestClient(console.app, base_url=HOST, headers={"authorization": f"Bearer {secret}"})
    assert program.get("/api/v1/self").json()["account"] == "viewer"
    # A token opens no pages, and of others only admins take one away.
    assert program.get("/devices", follow_redirects=False).status_code == 303
    other = browser(console.app)
    assert sign_in(other, "operator") == 303
    assert other.post("/tokens/1/revoke", data={"csrf": csrf_of(other.get("/self").text)}).status_code == 404
    assert console.post("/tokens/1/revoke", data={"csrf": csrf}).status_code == 303
    assert program.get("/api/v1/self").status_code == 401
    with small.read() as connection:
        actions = [each.action for each in audit.entries(connection, subject="viewer")]
    assert actions[-2:] == ["token.create", "token.revoke"]


def test_another_browser_that_a_form_is_not_from(small: Database, clock: Clock) -> None:
    first, second = open_console(small, clock), open_console(small, clock)
    csrf = csrf_of(first.get("/sign-in").text)
    second.get("/sign-in")
    assert second.post("/sign-in", data={"name": "viewer", "password": PASSWORD, "csrf": csrf}).status_code == 403
