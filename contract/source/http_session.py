"""One HTTP GET: TLS, proxies, redirects, ranges, and one kind of error for everything that can go wrong on the way."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from contract.errors import ConfigInvalid, SourceUnavailable
from contract.source.access import Access, Source, SourceSettings, other_tls, own_tls
from contract.source.proxy import Proxy
from contract.source.throughput_guard import Allowance, PacedSocket, ThroughputGuard

MAX_REDIRECTS = 5
"""Hops: a mirror director needs one or two."""

MAX_IDLE_DRAIN_BYTES = 2**16
"""Left-over bytes worth reading to keep a connection; beyond it a new one is cheaper."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MISSING = frozenset({403, 404, 410})
"""Object stores answer 403 for what does not exist; TUF clients treat both alike."""


class Address(NamedTuple):
    """A server, and what to call it in messages."""

    scheme: str
    host: str
    port: int

    @property
    def shown(self) -> str:
        return f"{self.scheme}://{self.name}"

    @property
    def name(self) -> str:
        """Host and port, as they stand in URLs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Route(NamedTuple):
    """A server and the way to it."""

    address: Address
    proxy: Proxy | None

    @property
    def shown(self) -> str:
        """For messages."""
        return self.address.shown if self.proxy is None else f"{self.address.shown} by the proxy {self.proxy.shown}"


def parse_url(url: str) -> tuple[Address, str]:
    """Split into the server and the path with its query.

    Raises:
        SourceUnavailable: not an http(s) URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SourceUnavailable("the address of the source is not a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceUnavailable(f"{parts.scheme or 'that'!r} is not a kind of source: give an http or https URL")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if re.search(r"[\x00-\x20\x7f]", path):
        raise SourceUnavailable("the address of the source contains a space or control character")
    return Address(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)), path


class Response(NamedTuple):
    """An answer whose body was not read yet; ``start`` is the offset of its first byte in the file."""

    raw: http.client.HTTPResponse
    start: int


class Exchange:
    """Connections to one server and wherever it redirects to; keeps the last one open.

    ``source`` says as whom and by which way; credentials and the client certificate are for its own server, never for
    whomever that points to. ``tls`` is a context that verifies, in place of the one that ``source`` asks for.
    """

    def __init__(
        self, source: Source = "", pace: ThroughputGuard | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._source = source
        self._pace = pace or ThroughputGuard()
        self._tls: dict[bool, ssl.SSLContext] = {} if tls is None else {True: tls, False: tls}
        self._access: Access | None = None
        self._kept: tuple[Route, http.client.HTTPConnection] | None = None
        self._open: http.client.HTTPResponse | None = None
        self._allowance = Allowance()

    def get(self, url: str, start: int = 0, length: int | None = None) -> Response | None:
        """GET, from byte ``start`` when the server can; None if the server says that there is no such file.

        Raises:
            SourceUnavailable: unreachable, stalled, a broken answer or an error status.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": "edge-bundle"}
        if length is not None:
            headers["Range"] = f"bytes={start}-{start + length - 1}"
        access = self._access = self._access or _read(self._source)
        first, _ = parse_url(url)
        for _ in range(MAX_REDIRECTS + 1):
            address, path = parse_url(url)
            own = dict(headers)
            # Credentials are for the configured server, not for whomever it points to.
            if access.authorization and address == first:
                own["Authorization"] = access.authorization
            route = _route(access, address)
            raw = self._send(route, path, own, ours=address == first)
            if raw.status not in _REDIRECTS:
                return self._accept(raw, route, start, ranged=length is not None)
            location = raw.getheader("Location")
            self.finish()
            if not location:
                raise SourceUnavailable(f"{address.shown} redirects to nowhere")
            url = urljoin(url, location)
            if address.scheme == "https" and not url.startswith("https:"):
                raise SourceUnavailable(f"{address.shown} redirects from https to something else")
        raise SourceUnavailable(f"{first.shown} redirects more than {MAX_REDIRECTS} times")

    def read_some(self, response: Response, limit: int) -> bytes:
        """At most ``limit`` bytes of the body; empty at its end.

        Raises:
            SourceUnavailable: broken off, stalled or too slow.
        """
        # The shortest chunks of a chunked answer take six bytes on the wire for one of the body.
        self._allowance.left = 8 * limit + 2**17
        try:
            return response.raw.read(limit)
        except SourceUnavailable:
            self.close()
            raise
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # http.client raises AttributeError when it reads a response whose connection is gone.
            self.close()
            raise SourceUnavailable(f"the connection broke off: {error!r}") from error

    def finish(self) -> None:
        """Be done with the open response, keeping the connection if little is left to read."""
        raw = self._open
        if raw is None:
            return
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, SourceUnavailable):
            # http.client keeps the length still to come here; None means "until the server closes".
            left = raw.length
            if not raw.isclosed() and left is not None and left <= MAX_IDLE_DRAIN_BYTES:
                raw.read()
        if not raw.isclosed():
            self.close()
        self._open = None

    def close(self) -> None:
        """Close the connection, whoever still holds an answer that came over it."""
        (kept, self._kept), (raw, self._open) = (self._kept, None), (self._open, None)
        if kept is not None:
            kept[1].close()
        if raw is not None:
            # http.client has let go of one that ends with its connection, and it keeps the socket open.
            raw.close()

    def _send(self, route: Route, path: str, headers: dict[str, str], *, ours: bool) -> http.client.HTTPResponse:
        self.finish()
        reused = self._kept is not None and self._kept[0] == route
        try:
            return self._send_once(route, path, headers, ours=ours)
        except (OSError, http.client.HTTPException, SourceUnavailable) as error:
            self.close()
            # A server may close an idle connection just when we use it: that says nothing about the server.
            stale = reused and not isinstance(error, (TimeoutError, SourceUnavailable))
            if not stale:
                raise _translate(error, route) from error
        try:
            return self._send_once(route, path, headers, ours=ours)
        except (OSError, http.client.HTTPException, SourceUnavailable) as error:
            self.close()
            raise _translate(error, route) from error

    def _send_once(self, route: Route, path: str, headers: dict[str, str], *, ours: bool) -> http.client.HTTPResponse:
        self._allowance.left = Allowance().left
        if self._kept is None or self._kept[0] != route:
            self.close()
            self._kept = (route, self._connect(route, ours=ours))
        connection = self._kept[1]
        self._allowance.left = Allowance().left
        if route.proxy is not None and route.address.scheme == "http":
            # The proxy is told where to go with each request (RFC 9112, 3.2.2), and who we are to it.
            path = f"http://{route.address.name}{path}"
            headers |= _proxy_headers(route.proxy)
        connection.request("GET", path, headers=headers)
        raw = connection.getresponse()
        self._open = raw
        return raw

    def _connect(self, route: Route, *, ours: bool) -> http.client.HTTPConnection:
        address, proxy = route
        host, port = (address.host, address.port) if proxy is None else (proxy.host, proxy.port)
        if address.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=self._pace.connect_seconds, context=self._tls_for(ours)
            )
            if proxy is not None:
                # What the server is to see stays out of what the proxy sees.
                connection.set_tunnel(address.host, address.port, _proxy_headers(proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._pace.connect_seconds)
        pace, allowance = self._pace, self._allowance

        def paced(sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> http.client.HTTPResponse:
            return http.client.HTTPResponse(PacedSocket(sock, pace, allowance), debuglevel, method)  # type: ignore[arg-type]

        connection.response_class = paced  # type: ignore[assignment]
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def _tls_for(self, ours: bool) -> ssl.SSLContext:
        """``ours``: for the server that is configured."""
        if ours not in self._tls:
            special = ours and isinstance(self._source, SourceSettings)
            try:
                self._tls[ours] = own_tls(self._source) if special else other_tls(self._source)  # type: ignore[arg-type]
            except ConfigInvalid as error:
                raise SourceUnavailable(error.message) from error
        return self._tls[ours]

    def _accept(self, raw: http.client.HTTPResponse, route: Route, start: int, *, ranged: bool) -> Response | None:
        address = route.address
        if raw.status in _MISSING:
            self.finish()
            return None
        if raw.getheader("Content-Encoding", "identity") != "identity":
            self.close()
            raise SourceUnavailable(f"{address.shown} compresses what it must send as it is")
        if raw.status == 200:
            return Response(raw, 0)
        match = _CONTENT_RANGE.fullmatch(raw.getheader("Content-Range", ""))
        if ranged and raw.status == 206 and match is not None and int(match[1]) == start:
            return Response(raw, start)
        self.close()
        if raw.status == 416:
            raise SourceUnavailable(f"{address.shown} has less of the file than is listed")
        if raw.status == 401:
            raise SourceUnavailable(f"{address.shown} wants credentials, or others than it is given (status 401)")
        if raw.status == 407 and route.proxy is not None:
            raise SourceUnavailable(f"the proxy {route.proxy.shown} wants credentials, or others (status 407)")
        raise SourceUnavailable(
            f"{address.shown} answered with status {raw.status}",
            retry_after=seconds_to_wait(raw.getheader("Retry-After"), raw.getheader("Date")),
        )


def seconds_to_wait(retry_after: str | None, date: str | None) -> float | None:
    """What ``Retry-After`` (RFC 9110, 10.2.3) asks for: seconds, or a date, which is held against the server's own
    ``date``, since the clock of a device may stand at 1970; None if it asks for nothing that can be understood.
    """
    text = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
        since = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return max(0.0, (until - since).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _read(source: Source) -> Access:
    try:
        return Access.of(source)
    except ConfigInvalid as error:
        raise SourceUnavailable(error.message) from error


def _route(access: Access, address: Address) -> Route:
    try:
        return Route(address, access.proxies.route(*address))
    except ValueError as error:
        raise SourceUnavailable(str(error)) from error


def _proxy_headers(proxy: Proxy) -> dict[str, str]:
    return {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}


def _translate(error: Exception, route: Route) -> SourceUnavailable:
    where = route.shown
    if isinstance(error, SourceUnavailable):
        assert error.reason is not None
        return SourceUnavailable(f"{where}: {error.message}", reason=error.reason, retry_after=error.retry_after)
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceUnavailable(f"the certificate of {where} is not accepted: {error.verify_message}")
    if isinstance(error, TimeoutError):
        return SourceUnavailable(f"{where} does not answer")
    return SourceUnavailable(f"{where} cannot be reached: {str(error)[:200] or type(error).__name__}")
