"""Ways to a source: proxies, authorities, client certificates, credentials; where secrets go, and where they don't."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.errors import ConfigInvalid, SourceUnavailable
from contract.source.access import Access, Source, SourceSettings, source_faults
from contract.source.http import HttpSource
from contract.source.proxy import Proxies, Proxy, parse_proxy
from tests.contract.source.servers import RangeHandler, hostile, make_certificate, proxy, serve, server_tls

PATH = "metadata/timestamp.json"
SECRETS = {"token": "tok-3141592653", "password": "pa55:wörd", "proxy": "pr0xy-5ecret"}


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/metadata").mkdir(parents=True)
    (tmp_path / "tree" / PATH).write_bytes(b"there")
    return tmp_path / "tree"


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """Files with secrets, by what is in them."""
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(f"{secret}\n")
    return {name: str(tmp_path / name) for name in SECRETS}


seen: list[str | None] = []


class Recording(RangeHandler):
    def do_GET(self) -> None:
        seen.append(self.headers.get("Authorization"))
        super().do_GET()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    seen.clear()
    yield


def read(source: Source) -> bytes | None:
    opened = HttpSource(source)
    try:
        return opened.read(PATH, 100)
    finally:
        opened.close()


# Which way.


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_the_environments_proxy_is_asked(tree: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with serve(tree) as url, proxy(url) as (address, asked):
        monkeypatch.setenv(name, f"http://{address}")
        assert read("http://depot.example:81/") == b"there"
        assert asked[0][:2] == ("GET", f"http://depot.example:81/{PATH}")
        assert asked[0][2]["Host"] == "depot.example:81"
        monkeypatch.setenv("NO_PROXY", "other.example,depot.example")
        with pytest.raises(SourceUnavailable):
            read("http://depot.example:81/")
        assert len(asked) == 1


def test_https_goes_through_a_tunnel_that_shows_the_proxy_nothing(
    tree: Path, tmp_path: Path, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "depot.example")
    source = SourceSettings("https://depot.example", ca=str(certificate), token_file=secrets["token"])
    with serve(tree, Recording, server_tls(certificate)) as url, proxy(url, basic("me", "p:w")) as (address, asked):
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%3Aw@{address}")
        opened = HttpSource(source)
        assert opened.read(PATH, 100) == b"there"
        assert b"".join(opened.stream(PATH, 1, 3)) == b"her"
        opened.close()
    ((method, target, headers),) = asked
    assert (method, target) == ("CONNECT", "depot.example:443")
    assert headers["Proxy-Authorization"] == basic("me", "p:w")
    assert "Authorization" not in headers
    assert seen == [f"Bearer {SECRETS['token']}"] * 2


def test_a_source_has_a_proxy_and_credentials_for_it_of_its_own(
    tree: Path, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serve(tree) as url, proxy(url, basic("box", SECRETS["proxy"])) as (address, asked):
        own = SourceSettings(
            "http://depot.example",
            proxy=f"http://{address}",
            proxy_username="box",
            proxy_password_file=secrets["proxy"],
        )
        assert read(own) == b"there"
        with pytest.raises(SourceUnavailable, match=r"proxy .* wants credentials"):
            read(SourceSettings("http://depot.example", proxy=address))
        assert read(SourceSettings(url.replace("127.0.0.1", "localhost"), proxy="direct")) == b"there"
    assert [headers.get("Proxy-Authorization") for _, _, headers in asked] == [basic("box", SECRETS["proxy"]), None]


def test_a_proxy_that_refuses_is_named_and_what_it_says_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b"HTTP/1.1 407 " + b"\x1b[2J" + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n"
    with hostile(lambda connection, over: connection.sendall(answer)) as url:
        with pytest.raises(SourceUnavailable) as caught:
            read(SourceSettings("https://depot.example", proxy=url))
    assert f"by the proxy {url}" in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\nnot TLS", b"SSH-2.0-x\r\n", b"HTTP/1.1 502 no\r\n\r\n"]
)
def test_a_proxy_that_is_none_is_the_sources_fault(answer: bytes) -> None:
    with hostile(lambda connection, over: connection.sendall(answer)) as url, pytest.raises(SourceUnavailable):
        read(SourceSettings("https://depot.example", proxy=url))


def test_endless_headers_of_a_proxy_end() -> None:
    def pour(connection: object, over: object) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")  # type: ignore[attr-defined]
        while not over.is_set():  # type: ignore[attr-defined]
            connection.sendall(b"X-More: 1\r\n" * 100)  # type: ignore[attr-defined]

    with hostile(pour) as url, pytest.raises(SourceUnavailable, match="more than was asked for"):
        read(SourceSettings("https://depot.example", proxy=url))


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("*", True),
        ("depot.example", True),
        (".example", True),
        ("*.example", True),
        ("example", True),
        ("xample", False),
        ("depot.example:443", True),
        ("depot.example:444", False),
        ("other.test, DEPOT.example. ", True),
        ("", False),
        (",", False),
    ],
)
def test_no_proxy_names_hosts_and_domains(no_proxy: str, direct: bool) -> None:
    proxies = Proxies.from_environment({"https_proxy": "proxy:3128", "NO_PROXY": no_proxy})
    assert (proxies.route("https", "depot.example", 443) is None) is direct


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("fd00::/8", "fd00::1", True),
        ("[2001:db8::1]", "2001:db8::1", True),
        ("", "127.0.0.1", True),
        ("", "::1", True),
        ("", "localhost", True),
    ],
)
def test_no_proxy_names_addresses_and_networks_and_loopback_is_direct(no_proxy: str, host: str, direct: bool) -> None:
    proxies = Proxies.from_environment({"ALL_PROXY": "http://proxy:3128", "no_proxy": no_proxy})
    assert (proxies.route("http", host, 80) is None) is direct


def test_a_proxys_address_is_read_strictly() -> None:
    assert parse_proxy("http://proxy.example:3128/") == Proxy("proxy.example", 3128)
    assert parse_proxy("proxy") == Proxy("proxy", 8080)
    assert "secret" not in repr(parse_proxy("http://me:secret@[::1]:1"))
    for wrong in (
        "socks5://me:secret@proxy:1",
        "https://proxy",
        "http://proxy:x",
        "http://",
        "http://a b",
        "http://p/x",
    ):
        with pytest.raises(ValueError, match="a proxy is given as") as caught:
            parse_proxy(wrong)
        assert "secret" not in str(caught.value)


def test_a_proxy_that_the_environment_names_wrongly_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://me:secret@proxy:1080")
    with pytest.raises(SourceUnavailable, match=r"environment's http_proxy: .*socks5:// proxies") as caught:
        read("http://depot.example")
    assert "secret" not in caught.value.message


# As whom.


def test_a_bearer_token_and_basic_authentication_come_from_files(tree: Path, secrets: dict[str, str]) -> None:
    with serve(tree, Recording) as url:
        assert read(SourceSettings(url, token_file=secrets["token"])) == b"there"
        assert read(SourceSettings(url, username="box", password_file=secrets["password"])) == b"there"
        # A secret that is renewed counts from the next time on.
        Path(secrets["token"]).write_text("another")
        assert read(SourceSettings(url, token_file=secrets["token"])) == b"there"
    assert seen == [f"Bearer {SECRETS['token']}", basic("box", SECRETS["password"]), "Bearer another"]


def test_a_server_that_wants_other_credentials_is_named_without_them(tree: Path, secrets: dict[str, str]) -> None:
    answer = b"HTTP/1.1 401 no\r\nContent-Length: 0\r\n\r\n"
    with hostile(lambda connection, over: connection.sendall(answer)) as url:
        with pytest.raises(SourceUnavailable, match="wants credentials") as caught:
            read(SourceSettings(url, token_file=secrets["token"]))
    assert SECRETS["token"] not in repr(caught.value)


def test_credentials_are_dropped_when_another_host_or_port_is_pointed_to(tree: Path, secrets: dict[str, str]) -> None:
    with serve(tree, Recording) as target:
        location = f"HTTP/1.1 302 Found\r\nLocation: {target}/{PATH}\r\nContent-Length: 0\r\n\r\n".encode()
        with hostile(lambda connection, over: connection.sendall(location)) as url:
            assert read(SourceSettings(url, token_file=secrets["token"])) == b"there"
    assert seen == [None]


def test_a_client_certificate_is_shown_to_its_server_and_to_no_other(tree: Path, tmp_path: Path) -> None:
    server, client = make_certificate(tmp_path, "localhost"), make_certificate(tmp_path, "box")
    settings = {"ca": str(server), "cert": str(client), "key": str(client.with_suffix(".key"))}
    with serve(tree, tls=server_tls(server, client)) as url:
        assert read(SourceSettings(url, **settings)) == b"there"
        with pytest.raises(SourceUnavailable):
            read(SourceSettings(url, ca=str(server)))
        with pytest.raises(SourceUnavailable, match="certificate"):
            read(url)

        class Redirecting(RangeHandler):
            def do_GET(self) -> None:
                self.send_response(302)
                self.send_header("Location", f"{url}/{PATH}")
                self.send_header("Content-Length", "0")
                self.end_headers()

        with serve(tree, Redirecting, server_tls(server, client)) as first, pytest.raises(SourceUnavailable):
            read(SourceSettings(first, **settings))
    # Where none is asked for, the one that is pointed to may be signed by the same authority.
    with serve(tree, tls=server_tls(server)) as url, serve(tree, Redirecting, server_tls(server, client)) as first:
        assert read(SourceSettings(first, **settings)) == b"there"


@pytest.mark.parametrize("what", ["token_file", "password_file", "proxy_password_file", "ca", "cert"])
def test_a_file_that_went_away_is_said_and_tried_again_later(tmp_path: Path, what: str) -> None:
    more = {"password_file": {"username": "box"}, "proxy_password_file": {"proxy_username": "box"}}.get(what, {})
    with pytest.raises(SourceUnavailable, match=rf"{what} .*/gone"):
        read(SourceSettings("https://127.0.0.1:1", **{what: str(tmp_path / "gone")}, **more))


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"url": "https://x/y?X-Amz-Signature=secret"}, "url", "a repository is many files"),
        ({"url": "ftp://x"}, "url", "ftp:// is not a kind of source"),
        ({"url": "/media/stick"}, "url", "needs an http"),
        ({"url": "https://x:port"}, "url", "not a URL"),
        ({"url": "https://x", "proxy": "socks5://p"}, "proxy", "socks5:// proxies are not supported"),
        ({"url": "https://x", "proxy": "http://me:secret@p"}, "proxy", "proxy_username"),
        ({"url": "https://x", "cert": "c"}, "cert", "cert c and its key cannot be used"),
        ({"url": "https://x", "key": "k"}, "cert", "key needs cert"),
        ({"url": "https://x", "username": "u"}, "password_file", "username needs password_file"),
        ({"url": "https://x", "password_file": "p"}, "username", "password_file needs username"),
        ({"url": "https://x", "proxy_username": "u"}, "proxy_password_file", "proxy_username needs"),
        ({"url": "https://u:secret@x", "token_file": "TOKEN"}, "token_file", "one way"),
        ({"url": "http://x", "token_file": "TOKEN"}, "url", "without TLS everybody"),
        ({"url": "https://x", "token_file": "BAD"}, "token_file", "visible ASCII"),
        ({"url": "https://x", "token_file": "EMPTY"}, "token_file", "holds no secret"),
        ({"url": "https://x", "token_file": "LONG"}, "token_file", "holds no secret"),
        ({"url": "https://x", "ca": "BAD"}, "ca", "ca .* cannot be used"),
    ],
)
def test_settings_that_cannot_work_are_said_before_anything_is_asked(
    tmp_path: Path, secrets: dict[str, str], settings: dict[str, str], field: str, words: str
) -> None:
    files = {"TOKEN": secrets["token"], "BAD": "secret\nX-Other: 1", "EMPTY": "\n", "LONG": "x" * 9000}
    for name in ("BAD", "EMPTY", "LONG"):
        (tmp_path / name).write_text(files[name])
        files[name] = str(tmp_path / name)
    source = SourceSettings(**{key: files.get(value, value) for key, value in settings.items()})
    faults = {fault.field: fault.message for fault in source_faults(source)}
    assert field in faults
    assert re.search(words, faults[field])
    assert "secret" not in str(faults).replace("holds no secret", "").replace("password", "")


def test_a_plain_url_is_looked_at_in_the_same_way() -> None:
    (fault,) = source_faults("https://x/y?token=secret")
    assert fault.message.startswith("a URL with a query")
    assert "secret" not in fault.message
    assert list(source_faults("https://u:p@x/y")) == []
    assert list(source_faults("/a?b")) == []


def test_plaintext_is_for_this_machine_or_by_permission(secrets: dict[str, str]) -> None:
    for url, more in (("http://localhost:1", {}), ("http://127.0.0.1", {}), ("http://x", {"allow_plaintext": True})):
        assert list(source_faults(SourceSettings(url, token_file=secrets["token"], **more))) == []


def test_no_way_of_printing_it_shows_a_secret(secrets: dict[str, str]) -> None:
    access = Access.of(SourceSettings("https://x", username="u", password_file=secrets["password"]))
    with pytest.raises(ConfigInvalid) as caught:
        Access.of(SourceSettings("https://x", token_file=secrets["password"]))
    for text in (repr(access), str(caught.value), repr(HttpSource("https://u:hidden@x")), repr(access.proxies)):
        assert not any(secret in text for secret in (*SECRETS.values(), "hidden"))
