"""The HTTP server's own bounds, and that it holds nothing back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from contract.errors import UsageError
from fleet.http import server
from fleet.http.app import make_app
from fleet.http.metrics import Sample
from fleet.http.server import Server, listen


class Room:
    """A part with one path that answers, one that fails, one that never ends."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def routes(self) -> Sequence[BaseRoute]:
        return [Route("/ok", self._ok), Route("/bad", self._bad), Route("/long", self._long)]

    async def _ok(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def _bad(self, _: Request) -> Response:
        raise ValueError("a fault of ours")

    async def _long(self, _: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                self.ended.set()

        return StreamingResponse(body())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def problems(self) -> dict[str, str]:
        return {}

    def warnings(self) -> dict[str, str]:
        return {}

    def samples(self) -> Sequence[Sample]:
        return []


@contextlib.contextmanager
def serving(room: Room) -> Iterator[Server]:
    made = Server(make_app([room]), listen("127.0.0.1", 0))
    made.start()
    try:
        yield made
    finally:
        made.stop()


def ask(made: Server, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", made.port), timeout=60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def test_small_pieces_are_sent_at_once() -> None:
    listening = listen("127.0.0.1", 0)
    # What asyncio looks at before it sets TCP_NODELAY.
    assert listening.proto == socket.IPPROTO_TCP
    listening.close()


def test_a_fault_of_ours_is_a_500_without_its_words_and_the_next_is_served() -> None:
    with serving(Room()) as made:
        answer = ask(made, "/bad")
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"internal_error" in answer
        assert b"a fault of ours" not in answer
        assert ask(made, "/ok").endswith(b"ok")


def test_who_does_not_say_what_he_wants_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    with serving(Room()) as made:
        for sent in (b"", b"GET /ok HT", b"GET /ok HTTP/1.1\r\nhost: x\r\n"):
            with socket.create_connection(("127.0.0.1", made.port), timeout=60) as connection:
                connection.sendall(sent)
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        # Whoever has said it is not.
        assert ask(made, "/ok").endswith(b"ok")


def test_who_does_not_read_is_cut_and_his_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEND_SECONDS", 0.2)
    room = Room()
    with serving(room) as made, socket.create_connection(("127.0.0.1", made.port), timeout=60) as connection:
        connection.sendall(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n")
        assert room.ended.wait(60)


def test_a_port_that_is_taken_is_said() -> None:
    taken = listen("127.0.0.1", 0)
    with pytest.raises(UsageError, match="name another with --listen"):
        listen("127.0.0.1", taken.getsockname()[1])
    taken.close()
