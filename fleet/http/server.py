"""Listens in a thread of its own; bounds connections and the time that a client may take to say what it wants."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from contract.errors import EngineFailed, UsageError

MAX_CONNECTIONS = 1024
"""At a time, below what a process may have open. Further ones are answered 503."""

HEAD_SECONDS = 15.0
"""For the first line and the headers of a request: who takes longer holds a connection for nothing."""

KEEP_ALIVE_SECONDS = 60
"""An idle connection is kept so long: longer than clients' pools, which would find theirs closed."""

SEND_SECONDS = 30.0
"""That a client may leave an answer unread, 64 KiB of it, before its connection is cut and the request ends."""

MAX_HEAD_BYTES = 32 << 10

SHUTDOWN_SECONDS = 5
"""For requests under way when the server is stopped; then they end on their devices."""

START_SECONDS = 30.0


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 by h11, with bounds that uvicorn has not: on the time for the head of a request, and for reading an
    answer.
    """

    _deadline: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        if self._stuck is not None:
            self._stuck.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Between two requests the time for keeping an idle connection runs; the first byte of the next head ends it.
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._head_is_here()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _head_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UsageError: it cannot.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends small pieces at once (TCP_NODELAY) on sockets alone that say that they are TCP; on others the
        # kernel holds each one back for 40 ms.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(1024)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; name another with --listen"
        ) from error
    return made


class _Server(uvicorn.Server):
    """Says when it answers. Signals are the main thread's: here, uvicorn leaves them alone."""

    def __init__(self, config: uvicorn.Config, started_event: threading.Event) -> None:
        super().__init__(config)
        self._started_event = started_event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._started_event.set()


class Server:
    """Serves ``app`` on ``listening`` from :meth:`start` to :meth:`stop`; ``on_end`` is called if it ends by itself."""

    def __init__(
        self,
        app: Starlette,
        listening: socket.socket,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._socket = listening
        self._tls = certificate is not None
        self._on_end = on_end
        self._started = threading.Event()
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ssl_certfile=None if certificate is None else str(certificate),
            ssl_keyfile=None if key is None else str(key),
        )
        try:
            config.load()
        except OSError as error:
            raise UsageError(f"the certificate or its key cannot be used: {error.strerror or error}") from error
        self._server = _Server(config, self._started)
        self._thread = threading.Thread(target=self._run, name="http")

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it answers, for people."""
        host = self._socket.getsockname()[0]
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def start(self) -> None:
        """Returns once it answers.

        Raises:
            EngineFailed: it ended at once.
        """
        self._thread.start()
        if not self._started.wait(START_SECONDS) or not self._server.started:
            raise EngineFailed("the HTTP server did not start")

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._started.set()
            self._on_end()

    def stop(self) -> None:
        """Take nothing new, give what is under way :data:`SHUTDOWN_SECONDS`, and end."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
