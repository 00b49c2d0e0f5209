"""Real HTTP servers on loopback: one with Range, one without, and hostile ones that follow a script."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

SECONDS = 120.0
"""Until what takes milliseconds counts as not happening."""


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Static files with single ranges, as every common web server serves them."""

    protocol_version = "HTTP/1.1"
    ranges = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match and self.ranges:
            start, end = int(match[1]), min(int(match[2]), len(data) - 1)
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)


class PlainHandler(RangeHandler):
    """The same without Range."""

    ranges = False


class OldHandler(PlainHandler):
    """HTTP/1.0: a connection for every file."""

    protocol_version = "HTTP/1.0"


class Connections:
    """How many a server has open now."""

    def __init__(self) -> None:
        self._open = 0
        self._changed = threading.Condition()

    def add(self, number: int) -> None:
        with self._changed:
            self._open += number
            self._changed.notify_all()

    def until(self, most: int) -> bool:
        """Wait until there are no more than ``most``; False if that does not happen."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open <= most, SECONDS)


class QuietServer(http.server.ThreadingHTTPServer):
    """TLS if there is a context, in the thread of the connection; clients that leave are nobody's error."""

    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def __init__(self, address: tuple[str, int], handler: Callable[..., Any]) -> None:
        self.connections = Connections()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(1)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.connections.add(-1)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is not None:
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except OSError:
                return
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def serve(
    directory: Path,
    handler: type[RangeHandler] = RangeHandler,
    tls: ssl.SSLContext | None = None,
    connections: Connections | None = None,
) -> Iterator[str]:
    """Serve ``directory`` on a free port; its URL. ``connections`` counts those that are open."""
    server = QuietServer(("127.0.0.1", 0), partial(handler, directory=str(directory)))
    server.tls = tls
    server.connections = connections or server.connections
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class ProxyHandler(http.server.BaseHTTPRequestHandler):
    """A forward proxy that finds every host at ``upstream`` and remembers what it was asked; new for every test."""

    upstream: ClassVar[tuple[str, int]]
    wanted: ClassVar[str | None]
    asked: ClassVar[list[tuple[str, str, dict[str, str]]]]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _let_in(self) -> bool:
        self.asked.append((self.command, self.path, dict(self.headers)))
        if self.wanted in (None, self.headers.get("Proxy-Authorization")):
            return True
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_GET(self) -> None:
        if not self._let_in():
            return
        parts = urlsplit(self.path)
        with socket.create_connection(self.upstream) as server:
            lines = [f"{name}: {value}" for name, value in self.headers.items() if not name.startswith("Proxy-")]
            request = "\r\n".join([f"GET {parts.path} HTTP/1.0", *lines, "", ""])
            server.sendall(request.encode())
            while data := server.recv(65536):
                self.wfile.write(data)
        self.close_connection = True

    def do_CONNECT(self) -> None:
        if not self._let_in():
            return
        with socket.create_connection(self.upstream) as server:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=pump, args=(server, self.connection), daemon=True)
            back.start()
            pump(self.connection, server)
            back.join()
        self.close_connection = True


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hand over bytes until one side is closed."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxy(upstream: str, wanted: str | None = None) -> Iterator[tuple[str, list[tuple[str, str, dict[str, str]]]]]:
    """A proxy before the server at the URL ``upstream``: ``HOST:PORT``, and method, target and headers of each request.

    ``wanted``: the Proxy-Authorization without which it lets nobody in.
    """
    parts = urlsplit(upstream)
    asked: list[tuple[str, str, dict[str, str]]] = []
    address = (parts.hostname or "", parts.port or 0)
    handler = type("Handler", (ProxyHandler,), {"upstream": address, "wanted": wanted, "asked": asked})
    server = QuietServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_certificate(directory: Path, name: str) -> Path:
    """A self-signed certificate for ``name`` (and 127.0.0.1) in PEM, with its key beside it as ``.key``."""
    out = directory / f"{name}.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-keyout",
         str(out.with_suffix(".key")), "-out", str(out)],
        check=True, capture_output=True,
    )  # fmt: skip
    return out


def server_tls(certificate: Path, clients: Path | None = None) -> ssl.SSLContext:
    """For a server with ``certificate``, which lets in ``clients`` only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


@contextlib.contextmanager
def hostile(script: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that runs ``script`` on every connection after reading the request; the event is set at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            script(connection, over)

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


Wrong = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]
"""Answers a request in place of the server, which would send these bytes."""


def answer(status: int, body: bytes | None = None, **headers: str) -> Wrong:
    """An answer of ``status`` with ``body``, or with what should have been sent."""

    def give(handler: http.server.BaseHTTPRequestHandler, right: bytes) -> None:
        data = right if body is None else body
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return give


def changed(change: Callable[[bytes], bytes]) -> Wrong:
    """Status 200 and other bytes than there are."""
    return lambda handler, right: answer(200, change(right))(handler, right)


def cut_off(handler: http.server.BaseHTTPRequestHandler, right: bytes) -> None:
    """As much as was announced does not come."""
    handler.close_connection = True
    answer(200, right[: len(right) // 2], Content_Length=str(len(right)))(handler, right)


LOGIN = b"<!DOCTYPE html><html><head><title>Welcome to Free WiFi</title></head><body>Please log in.</body></html>"

WRONGS: dict[str, Wrong] = {
    "portal": answer(200, LOGIN, Content_Type="text/html"),
    "long page": answer(200, LOGIN * 50_000, Content_Type="text/html"),
    "empty": answer(200, b""),
    "other bytes": changed(lambda right: bytes(byte ^ 1 for byte in right)),
    "one byte": changed(lambda right: right[:-1] + bytes([right[-1] ^ 1])),
    "truncated": changed(lambda right: right[: len(right) // 2]),
    "cut off": cut_off,
    "gzip said": lambda handler, right: answer(200, gzip.compress(right), Content_Encoding="gzip")(handler, right),
    "gzip unsaid": changed(gzip.compress),
    "login redirect": answer(302, b"", Location="/login"),
    "error page": answer(200, b'{"error": "upstream timed out"}', Content_Type="application/json"),
    "forbidden": answer(403, LOGIN),
    "not found": answer(404, LOGIN),
    "log in first": answer(511, LOGIN),
    "too many": answer(429, b"", Retry_After="0"),
    "internal error": answer(500, LOGIN),
    "bad gateway": answer(502, LOGIN),
    "unavailable": answer(503, LOGIN, Retry_After="soon"),
}
"""What stands between a device and its source sends for some seconds."""


class Troubled(RangeHandler):
    """Static files, once ``trouble`` is over: the answers that the next requests below a folder get instead, or below
    "" whatever is asked for, there or not. Made anew for every test.
    """

    trouble: ClassVar[dict[str, list[Wrong]]]
    lock = threading.Lock()

    def do_GET(self) -> None:
        if self.path == "/login":
            answer(200, LOGIN)(self, b"")
            return
        path = Path(self.translate_path(self.path))
        with self.lock:
            waiting = self.trouble.get("") or (self.trouble.get(self.path.split("/")[1], []) if path.is_file() else [])
            wrong = waiting.pop(0) if waiting else None
        if wrong is None:
            super().do_GET()
        else:
            with contextlib.suppress(OSError):
                wrong(self, path.read_bytes() if path.is_file() else b"")


def troubled(trouble: dict[str, list[Wrong]]) -> type[Troubled]:
    """A handler for :func:`serve` with trouble of its own."""
    return type("Handler", (Troubled,), {"trouble": trouble, "lock": threading.Lock()})
