"""Servers that stall, drip, lie or never stop."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.errors import BundleRefused, SourceUnavailable
from contract.reasons import Reason
from contract.source.http import HttpSource
from contract.source.http_session import seconds_to_wait
from contract.source.throughput_guard import ThroughputGuard
from tests.broker import free_port
from tests.contract.source.servers import Connections, RangeHandler, hostile, serve

QUICK = ThroughputGuard(connect_seconds=5, read_seconds=0.3, window_seconds=0.3, min_bytes_per_second=1000)
PATH = "metadata/timestamp.json"
Script = Callable[[socket.socket, threading.Event], None]


def drip(head: bytes, drop: bytes) -> Script:
    """Send ``head``, then ``drop`` again and again, slowly."""

    def script(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head)
        while not over.wait(0.02):
            connection.sendall(drop)

    return script


def pour(head: bytes, drop: bytes) -> Script:
    """Send ``head``, then ``drop`` as fast as it goes."""

    def script(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head)
        while not over.is_set():
            connection.sendall(drop)

    return script


def stall(head: bytes) -> Script:
    def script(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head)
        over.wait()

    return script


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "script",
    [
        stall(b""),
        stall(OK),
        stall(OK + b"Content-Length: 100\r\n\r\nabc"),
        drip(b"", b"H"),
        drip(OK, b"X-Drip: 1\r\n"),
        drip(OK + b"Content-Length: 100000\r\n\r\n", b"x"),
        drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silent", "no-headers", "half-a-body", "drips-status", "drips-headers", "drips-body", "drips-chunks"],
)
def test_a_stalled_or_dripping_server_is_given_up_on(script: Script) -> None:
    with hostile(script) as url, pytest.raises(SourceUnavailable) as caught:
        HttpSource(url, pace=QUICK).read(PATH, 200_000)
    assert caught.value.reason is Reason.SOURCE_TOO_SLOW


def test_a_dripping_stream_is_given_up_on_as_too_slow() -> None:
    script = drip(b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-99999/100000\r\nContent-Length: 100000\r\n\r\n", b"x")
    with hostile(script) as url, pytest.raises(SourceUnavailable) as caught:
        list(HttpSource(url, pace=QUICK).stream(PATH, 0, 100_000))
    assert caught.value.reason is Reason.SOURCE_TOO_SLOW


def test_a_slow_server_that_keeps_the_pace_is_read_to_its_end() -> None:
    """Its pauses lie across the ends of the windows in which the pace is measured."""

    def script(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-3999/4000\r\nContent-Length: 4000\r\n\r\n")
        for _ in range(20):
            over.wait(0.08)
            connection.sendall(b"x" * 200)

    pace = ThroughputGuard(connect_seconds=30, read_seconds=30, window_seconds=0.1, min_bytes_per_second=1)
    with hostile(script) as url:
        assert sum(map(len, HttpSource(url, pace=pace).stream(PATH, 0, 4000))) == 4000


@pytest.mark.parametrize(
    "script",
    [
        pour(OK + b"Content-Length: 9223372036854775807\r\n\r\n", b"x" * 65536),
        pour(OK + b"\r\n", b"x" * 65536),
        pour(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10\r\n" + b"x" * 16 + b"\r\n"),
    ],
    ids=["claimed", "until-close", "chunked"],
)
def test_an_endless_body_is_refused(script: Script) -> None:
    with hostile(script) as url, pytest.raises(BundleRefused) as caught:
        HttpSource(url).read(PATH, 100_000)
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "script",
    [
        pour(OK, b"X: 1\r\n"),
        pour(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        pour(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"Trailer: 1\r\n"),
        pour(OK + b"X: ", b"x" * 65536),
    ],
    ids=["headers", "interim-answers", "trailers", "one-header-line"],
)
def test_endless_talk_around_a_body_ends(script: Script) -> None:
    with hostile(script) as url, pytest.raises(SourceUnavailable):
        HttpSource(url).read(PATH, 100_000)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-9/10\r\nContent-Length: 3\r\n\r\nxxx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_wrong_answers_are_the_sources_fault(answer: bytes) -> None:
    with hostile(lambda connection, over: connection.sendall(answer)) as url, pytest.raises(SourceUnavailable):
        list(HttpSource(url).stream(PATH, 0, 3))
    with hostile(lambda connection, over: connection.sendall(answer)) as url, pytest.raises(SourceUnavailable):
        HttpSource(url).read(PATH, 100)


def test_nobody_listening_is_unavailable() -> None:
    port = free_port()
    with pytest.raises(SourceUnavailable):
        HttpSource(f"http://127.0.0.1:{port}").read(PATH, 10)


def test_follows_a_redirect_and_gives_up_on_a_circle(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / PATH).write_bytes(b"there")
    with serve(tmp_path) as target:
        location = f"HTTP/1.1 302 Found\r\nLocation: {target}/{PATH}\r\nContent-Length: 0\r\n\r\n".encode()
        with hostile(lambda connection, over: connection.sendall(location)) as url:
            assert HttpSource(url).read(PATH, 100) == b"there"
    circle = b"HTTP/1.1 302 Found\r\nLocation: /x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with hostile(lambda connection, over: connection.sendall(circle)) as url, pytest.raises(SourceUnavailable):
        HttpSource(url).read(PATH, 100)


def test_credentials_go_to_the_configured_server_only(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Recording(RangeHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            super().do_GET()

    (tmp_path / "metadata").mkdir()
    (tmp_path / PATH).write_bytes(b"there")
    with serve(tmp_path, Recording) as target:
        assert HttpSource(target.replace("//", "//user:pass@")).read(PATH, 100) == b"there"
        location = f"HTTP/1.1 302 Found\r\nLocation: {target}/{PATH}\r\nContent-Length: 0\r\n\r\n".encode()
        with hostile(lambda connection, over: connection.sendall(location)) as url:
            assert HttpSource(url.replace("//", "//user:pass@")).read(PATH, 100) == b"there"
    assert seen == ["Basic dXNlcjpwYXNz", None]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    out = tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(out), "-out",
         str(tmp_path / "only-cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    out.write_bytes(out.read_bytes() + (tmp_path / "only-cert.pem").read_bytes())
    return out


@contextlib.contextmanager
def serve_tls(certificate: Path, answer: bytes) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection, context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(65536)
                    secure.sendall(answer)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_tls_is_verified_by_default_and_never_left_by_redirect(certificate: Path) -> None:
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    trusting = ssl.create_default_context(cafile=str(certificate))
    with serve_tls(certificate, body) as port:
        assert HttpSource(f"https://localhost:{port}", tls=trusting).read(PATH, 10) == b"ok"
        with pytest.raises(SourceUnavailable, match="certificate"):
            HttpSource(f"https://localhost:{port}").read(PATH, 10)
        with pytest.raises(SourceUnavailable, match="certificate"):
            HttpSource(f"https://127.0.0.1:{port}", tls=trusting).read(PATH, 10)
    downgrade = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n"
    with serve_tls(certificate, downgrade) as port, pytest.raises(SourceUnavailable, match="https to something else"):
        HttpSource(f"https://localhost:{port}", tls=trusting).read(PATH, 10)


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("120", None, 120.0),
        (" 0 ", None, 0.0),
        ("Fri, 27 Nov 2026 12:02:00 GMT", "Fri, 27 Nov 2026 12:00:00 GMT", 120.0),
        # A device whose clock stands at 1970 must not wait for half a century.
        ("Fri, 27 Nov 2026 12:02:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", 1795780920.0),
        ("Fri, 27 Nov 2026 11:00:00 GMT", "Fri, 27 Nov 2026 12:00:00 GMT", 0.0),
        ("soon", None, None),
        ("-5", None, None),
        ("9" * 40, None, None),
        ("Fri, 99 Nov 2026 12:02:00 GMT", None, None),
        ("Fri, 27 Nov 2026 12:02:00", "Fri, 27 Nov 2026 12:00:00 GMT", None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_how_long_a_server_asks_to_be_left_alone(
    retry_after: str | None, date: str | None, seconds: float | None
) -> None:
    assert seconds_to_wait(retry_after, date) == seconds


def test_what_retry_after_asks_for_comes_with_the_error() -> None:
    answer = b"HTTP/1.1 429 Slow down\r\nRetry-After: 77\r\nContent-Length: 0\r\n\r\n"
    with hostile(lambda connection, over: connection.sendall(answer)) as url:
        with pytest.raises(SourceUnavailable) as caught:
            HttpSource(url).read(PATH, 100)
        assert caught.value.retry_after == 77.0
        with pytest.raises(SourceUnavailable) as caught:
            list(HttpSource(url).stream(PATH, 0, 3))
        assert caught.value.retry_after == 77.0


class Endless(RangeHandler):
    """Sends for as long as somebody is there to hear it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(2**40))
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(2**16))


class OldEndless(Endless):
    """In HTTP/1.0 an answer ends with its connection."""

    protocol_version = "HTTP/1.0"


@pytest.mark.parametrize("handler", [Endless, OldEndless])
def test_a_source_that_is_closed_leaves_no_connection_behind(tmp_path: Path, handler: type[RangeHandler]) -> None:
    """Nor does it while somebody holds what was only begun, or the error that it ended with."""
    open_now = Connections()
    with serve(tmp_path, handler, connections=open_now) as url:
        begun = HttpSource(url)
        pieces = begun.stream(PATH, 0, 2**30)
        assert next(iter(pieces))
        begun.close()
        assert open_now.until(0)
        with pytest.raises(BundleRefused) as refused:
            HttpSource(url).read(PATH, 100)
        assert open_now.until(0)
        with pytest.raises(SourceUnavailable):
            list(pieces)
    assert refused.value.reason is Reason.TOO_LARGE


def test_the_connection_of_a_source_is_kept_until_it_is_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"there")
    open_now = Connections()
    with serve(tmp_path, connections=open_now) as url:
        source = HttpSource(url)
        assert source.read("file", 5) == b"there"
        assert source.read("missing", 5) is None
        source.close()
        assert open_now.until(0)
        with pytest.raises(SourceUnavailable, match="closed"):
            source.read("file", 5)
