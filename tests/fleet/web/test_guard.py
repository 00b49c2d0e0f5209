"""Whom the console answers, and whom it believes."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from contract.errors import RequestInvalid, UsageError
from edge_bundle.broker import parse_broker
from fleet.access.throttle import FREE_ATTEMPTS
from fleet.gateway.access import Anybody
from fleet.gateway.gateway import Gateway
from fleet.http.app import make_app
from fleet.store.database import Database
from fleet.web.app import Console
from fleet.web.guard import check_host, check_url, client_address
from fleet.web.settings import Settings
from tests.fleet.web.stage import HOST, PASSWORD, Clock, browser, csrf_of, open_console

PROXIES = frozenset({"10.0.0.1", "10.0.0.2"})


def request(client: str = "192.0.2.7", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "client": (client, 1234), "headers": raw})


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        ("192.0.2.7", "", "192.0.2.7"),
        # What a client says of itself is nothing.
        ("192.0.2.7", "198.51.100.1", "192.0.2.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        # Behind a proxy, whoever said something to it is before what it heard.
        ("10.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", " , 10.0.0.2", "10.0.0.1"),
    ],
)
def test_behind_a_proxy_of_ours_the_client_is_whom_it_heard(client: str, forwarded: str, address: str) -> None:
    assert client_address(request(client, x_forwarded_for=forwarded), PROXIES) == address


@pytest.mark.parametrize("host", ["fleet.example.org", "localhost", "127.0.0.1:8080", "[::1]:8080"])
def test_it_answers_to_its_name_and_to_addresses(host: str) -> None:
    check_host(request(host=host), "https://fleet.example.org")


@pytest.mark.parametrize("host", ["evil.example.org", "fleet.example.org.evil", "", "fleet.example.org:9"])
def test_it_does_not_answer_to_other_names(host: str) -> None:
    with pytest.raises(RequestInvalid, match="start edge-fleet serve with --url") as refused:
        check_host(request(host=host), "https://fleet.example.org")
    assert (refused.value.code, refused.value.field) == (421, "Host")


def test_a_url_is_scheme_and_host() -> None:
    assert check_url("https://fleet.example.org:8443/") == "https://fleet.example.org:8443"
    for wrong in ("fleet.example.org", "ftp://fleet", "https://fleet/console", "https://[::1", "https://fleet:x"):
        with pytest.raises(UsageError, match="write --url as"):
            check_url(wrong)


def test_those_behind_a_proxy_are_slowed_apart(small: Database, clock: Clock) -> None:
    app = open_console(small, clock, proxies=frozenset({"testclient"})).app

    def attempt(address: str, name: str) -> int:
        client = browser(app)
        client.headers["x-forwarded-for"] = address
        csrf = csrf_of(client.get("/sign-in").text)
        return client.post("/sign-in", data={"name": name, "password": "wrong", "csrf": csrf}).status_code

    while attempt("198.51.100.1", "nobody") != 429:
        clock.now += 0.001
    assert attempt("198.51.100.1", "viewer") == 429
    assert attempt("198.51.100.2", "viewer") == 401
    assert FREE_ATTEMPTS > 0


def test_behind_https_cookies_are_for_https_alone(small: Database, clock: Clock) -> None:
    client = open_console(small, clock, url="https://fleet.example.org", proxies=frozenset({"testclient"}))
    page = client.get("/sign-in")
    assert page.headers["strict-transport-security"] == "max-age=31536000"
    signed_in = client.post("/sign-in", data={"name": "viewer", "password": PASSWORD, "csrf": csrf_of(page.text)})
    cookies = signed_in.headers.get_list("set-cookie")
    assert signed_in.status_code == 303
    assert cookies
    assert all("Secure" in each for each in cookies)
    assert client.get("https://evil.example.org/").status_code == 421


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("POST", "/v1/embeddings", 404, None),
        ("GET", "/v1", 404, None),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models/toy", 405, "GET, HEAD"),
    ],
)
def test_what_is_below_the_gateway_is_answered_in_its_shape_beside_the_console_too(
    small: Database, clock: Clock, method: str, path: str, status: int, allowed: str | None
) -> None:
    gateway = Gateway(parse_broker("mqtt://127.0.0.1:1"), "edge/v1", Anybody())
    app = make_app([gateway, Console(Settings(database=small, clock=clock))])
    reply = TestClient(app, base_url=HOST).request(method, path)
    assert (reply.status_code, reply.headers.get("allow")) == (status, allowed)
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
