"""One HTTP GET: TLS, redirects, ranges, and one kind of error for everything that can go wrong on the way."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from contract.errors import SourceUnavailable
from contract.source.pace import Allowance, Pace, PacedSocket

MAX_REDIRECTS = 5
"""Hops: a mirror director needs one or two."""

MAX_IDLE_DRAIN_BYTES = 2**16
"""Left-over bytes worth reading to keep a connection; beyond it a new one is cheaper."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MISSING = frozenset({403, 404, 410})
"""Object stores answer 403 for what does not exist; TUF clients treat both alike."""


class Address(NamedTuple):
    """Where to connect, who we say we are, and what to call it in messages (never with credentials)."""

    scheme: str
    host: str
    port: int
    authorization: str | None

    @property
    def shown(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


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
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if re.search(r"[\x00-\x20\x7f]", path):
        raise SourceUnavailable("the address of the source contains a space or control character")
    return Address(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), authorization), path


class Response(NamedTuple):
    """An answer whose body was not read yet; ``start`` is the offset of its first byte in the file."""

    raw: http.client.HTTPResponse
    start: int


class Exchange:
    """Connections to one server and wherever it redirects to; keeps the last one open.

    ``tls`` is a context that verifies; the default one uses the system's certificates.
    """

    def __init__(self, pace: Pace | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._pace = pace or Pace()
        self._tls = tls
        self._kept: tuple[Address, http.client.HTTPConnection] | None = None
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
        first, _ = parse_url(url)
        for _ in range(MAX_REDIRECTS + 1):
            address, path = parse_url(url)
            own = dict(headers)
            # Credentials are for the configured server, not for whomever it points to.
            if first.authorization and (address.host, address.port) == (first.host, first.port):
                own["Authorization"] = first.authorization
            raw = self._send(address, path, own)
            if raw.status not in _REDIRECTS:
                return self._accept(raw, address, start, ranged=length is not None)
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
        raw, self._open = self._open, None
        if raw is None:
            return
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, SourceUnavailable):
            # http.client keeps the length still to come here; None means "until the server closes".
            left = raw.length
            if not raw.isclosed() and left is not None and left <= MAX_IDLE_DRAIN_BYTES:
                raw.read()
        if not raw.isclosed():
            self.close()

    def close(self) -> None:
        """Close the connection."""
        kept, self._kept, self._open = self._kept, None, None
        if kept is not None:
            kept[1].close()

    def _send(self, address: Address, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        self.finish()
        reused = self._kept is not None and self._kept[0] == address
        try:
            return self._send_once(address, path, headers)
        except (OSError, http.client.HTTPException, SourceUnavailable) as error:
            self.close()
            # A server may close an idle connection just when we use it: that says nothing about the server.
            stale = reused and not isinstance(error, (TimeoutError, SourceUnavailable))
            if not stale:
                raise _translate(error, address) from error
        try:
            return self._send_once(address, path, headers)
        except (OSError, http.client.HTTPException, SourceUnavailable) as error:
            self.close()
            raise _translate(error, address) from error

    def _send_once(self, address: Address, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._kept is None or self._kept[0] != address:
            self.close()
            self._kept = (address, self._connect(address))
        connection = self._kept[1]
        self._allowance.left = Allowance().left
        connection.request("GET", path, headers=headers)
        raw = connection.getresponse()
        self._open = raw
        return raw

    def _connect(self, address: Address) -> http.client.HTTPConnection:
        if address.scheme == "https":
            self._tls = self._tls or ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                address.host, address.port, timeout=self._pace.connect_seconds, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=self._pace.connect_seconds)
        pace, allowance = self._pace, self._allowance

        def paced(sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> http.client.HTTPResponse:
            return http.client.HTTPResponse(PacedSocket(sock, pace, allowance), debuglevel, method)  # type: ignore[arg-type]

        connection.response_class = paced  # type: ignore[assignment]
        connection.connect()
        return connection

    def _accept(self, raw: http.client.HTTPResponse, address: Address, start: int, *, ranged: bool) -> Response | None:
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


def _translate(error: Exception, address: Address) -> SourceUnavailable:
    if isinstance(error, SourceUnavailable):
        assert error.reason is not None
        return SourceUnavailable(
            f"{address.shown}: {error.message}", reason=error.reason, retry_after=error.retry_after
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceUnavailable(f"the certificate of {address.shown} is not accepted: {error.verify_message}")
    if isinstance(error, TimeoutError):
        return SourceUnavailable(f"{address.shown} does not answer")
    return SourceUnavailable(f"{address.shown} cannot be reached: {error or type(error).__name__}")
