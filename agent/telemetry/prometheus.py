"""The small server that shows the page of metrics; off unless configured.

It answers ``GET /metrics`` and nothing else, takes few connections at a time and holds none of them long: it can be
starved, never the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from agent.telemetry.exposition import TEXT, preferred
from agent.telemetry.settings import PrometheusSettings
from contract.errors import ConfigInvalid

log = logging.getLogger("edge_agent.prometheus")

MAX_CONNECTIONS = 8
"""A scraper or two and a browser."""

MAX_HEAD_BYTES = 8192
"""A GET with every header that a proxy may add."""

SECONDS = 20.0
"""Reading the question and writing the answer, each: longer than scrapers wait (10 s), however busy this machine is."""


class PrometheusEndpoint:
    """Serves what ``page`` returns for a content type. Without a port every method does nothing."""

    def __init__(self, settings: PrometheusSettings, page: Callable[[str], str]) -> None:
        self._settings = settings
        self._page = page
        self._server: asyncio.Server | None = None
        self._open = 0

    @property
    def port(self) -> int | None:
        """Where it listens."""
        return None if self._server is None else int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigInvalid: the address cannot be used.
        """
        if self._settings.port:
            await self.listen(self._settings.port)

    async def listen(self, port: int) -> None:
        """Listen on ``port`` (0: any free one). Raises ConfigInvalid."""
        host = self._settings.host
        try:
            self._server = await asyncio.start_server(self._answer, host, port, limit=MAX_HEAD_BYTES)
        except (OSError, UnicodeError) as error:
            raise ConfigInvalid(
                f"telemetry.prometheus: {host}:{port} cannot be listened on: {error}; choose another port",
                field="telemetry.prometheus.port",
            ) from error
        log.info("metrics at http://%s:%d/metrics", host, self.port)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(SECONDS):
                    try:
                        head = await reader.readuntil(b"\r\n\r\n")
                    except asyncio.LimitOverrunError:
                        head = b""
                async with asyncio.timeout(SECONDS):
                    writer.write(self._reply(head))
                    await writer.drain()
                    # Half-closed first: an abort could destroy what the reader has not taken yet.
                    if (sock := writer.get_extra_info("socket")) is not None:
                        with contextlib.suppress(OSError):
                            sock.shutdown(socket.SHUT_WR)
        finally:
            self._open -= 1
            writer.close()

    def _reply(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", "this is no HTTP/1.1 request\n")
        if words[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "use GET\n", "Allow: GET, HEAD\r\n")
        if words[1].split(b"?", 1)[0] != b"/metrics":
            return _response("404 Not Found", "the metrics are at /metrics\n")
        kind = preferred(_header(head, b"accept"))
        return _response("200 OK", self._page(kind), content_type=kind, only_head=words[0] == b"HEAD")


def _header(head: bytes, name: bytes) -> str:
    """What the header says, all its lines together; empty where it is not there."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return ",".join(value.decode("latin-1").strip() for key, _, value in lines if key.strip().lower() == name)


def _response(status: str, body: str, more: str = "", *, content_type: str = TEXT, only_head: bool = False) -> bytes:
    content = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
    return f"{head}{more}Connection: close\r\n\r\n".encode() + (b"" if only_head else content)
