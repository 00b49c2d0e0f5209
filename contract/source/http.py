"""A repository behind any web server: static files, Range where the server has it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from urllib.parse import quote

from contract.errors import BundleRefused, SourceUnavailable
from contract.identifiers import check_path
from contract.reasons import Reason
from contract.source.access import Source, location_of
from contract.source.directory import PIECE_BYTES
from contract.source.http_session import Exchange, Response, parse_url
from contract.source.throughput_guard import ThroughputGuard


class HttpSource:
    """Reads files below the URL of ``source``, over one kept connection; one ``stream`` at a time, for one thread.

    ``piece_bytes`` bounds what ``stream`` delivers at a time. ``whole_only``: the server was seen to send whole files
    where a range was asked for.

    Without Range support on the server a forward-going reader of one file still costs one transfer: the response is
    kept and read on.

    Raises:
        SourceUnavailable: that is not an http(s) URL, or has a query.
    """

    is_remote = True

    def __init__(
        self,
        source: Source,
        *,
        pace: ThroughputGuard | None = None,
        tls: ssl.SSLContext | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        url = location_of(source)
        address, path = parse_url(url)
        if "?" in path:
            raise SourceUnavailable("the URL of a repository has no query")
        self._url = url.split("#", 1)[0].rstrip("/")
        self._description = f"{address.shown}{path.rstrip('/')}"
        self._exchange: Exchange | None = Exchange(source, pace, tls)
        self._held: tuple[str, Response, int] | None = None
        self._piece_bytes = piece_bytes
        self.whole_only = False

    @property
    def description(self) -> str:
        return self._description

    def read(self, path: str, max_bytes: int) -> bytes | None:
        exchange = self._usable()
        self._held = None
        response = exchange.get(self._locate(path))
        if response is None:
            return None
        too_large = BundleRefused(Reason.TOO_LARGE, f"{path} is longer than the {max_bytes} bytes allowed")
        if (response.raw.length or 0) > max_bytes:
            exchange.close()
            raise too_large
        announced = response.raw.length
        data = bytearray()
        while piece := exchange.read_some(response, min(PIECE_BYTES, max_bytes + 1 - len(data))):
            data += piece
            if len(data) > max_bytes:
                exchange.close()
                raise too_large
        if announced is not None and len(data) < announced:
            exchange.close()
            raise SourceUnavailable(f"{self.description} broke off in {path}")
        exchange.finish()
        return bytes(data)

    def stream(self, path: str, start: int, length: int) -> Iterator[bytes]:
        exchange = self._usable()
        if not length:
            return
        response, position = self._seek(exchange, path, start, length)
        end = start + length
        while position < end:
            # The head that a server without Range sends anyway is thrown away.
            piece = exchange.read_some(
                response, min(self._piece_bytes, (start if position < start else end) - position)
            )
            if not piece:
                exchange.close()
                raise SourceUnavailable(f"{path} at {self.description} ends early")
            position += len(piece)
            self._held = (path, response, position) if response.raw.status == 200 else None
            if position > start:
                yield piece
        if not response.raw.length:
            self._held = None
            exchange.finish()

    def close(self) -> None:
        self._held = None
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _seek(self, exchange: Exchange, path: str, start: int, length: int) -> tuple[Response, int]:
        held, self._held = self._held, None
        if held is not None and held[0] == path and held[2] <= start and not held[1].raw.isclosed():
            return held[1], held[2]
        response = exchange.get(self._locate(path), start, length)
        if response is None:
            raise SourceUnavailable(f"{self.description} has no {path}")
        self.whole_only = self.whole_only or (response.raw.status == 200 and response.raw.length != length)
        return response, response.start

    def _usable(self) -> Exchange:
        if self._exchange is None:
            raise SourceUnavailable(f"{self.description} was closed")
        return self._exchange

    def _locate(self, path: str) -> str:
        return f"{self._url}/{quote(str(check_path(path)), safe='/')}"
