"""One request of OpenAI's interface, from the first device that is asked to the last byte that is sent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge_bundle.presence import Device
from edge_bundle.replies import Answer, Piece
from fleet.gateway import answers
from fleet.gateway.answers import DONE, WAITING, Chunks, event
from fleet.gateway.asking import Begun, Event, Failed, Waiting
from fleet.gateway.problems import INTERNAL, Problem
from fleet.gateway.requests import Asked
from fleet.http.connection import unless_gone

HOLD_TICKS = 10
"""Seconds until a stream begins although nothing has come: until then an error can have its own status."""

CLIENT_CLOSED = 499
"""Of nginx: nobody hears it; it stands in the counts."""

Numbered = tuple[int, Event]


class Json(Response):
    """A document as msgspec writes it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """An error as OpenAI says it."""
    return Json(problem.body, problem.status, {**(headers or {}), **problem.headers})


class Answering:
    """An ASGI application that answers one request: asks for it, sends what comes, and ends it on the device when the
    client leaves. ``ask`` asks for one of the request's bodies; ``over`` is told how it went.
    """

    def __init__(
        self,
        asked: Asked,
        *,
        id: str,
        created: int,
        headers: dict[str, str],
        ask: Callable[[dict[str, Any]], AsyncGenerator[Event, None]],
        device: Callable[[str], Device | None],
        over: Callable[[int, list[Answer], float | None], None],
    ) -> None:
        self._asked = asked
        self._id = id
        self._created = created
        self._headers = headers
        self._ask = ask
        self._device = device
        self._over = over
        self._answers: dict[int, Answer] = {}
        self._named = ""
        self._status = CLIENT_CLOSED
        self._first: float | None = None
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        respond = self._stream(send) if self._asked.stream else self._whole(scope, receive, send)
        try:
            await unless_gone(receive, respond)
        except Exception:
            self._status = 500
            raise
        finally:
            self._over(self._status, list(self._answers.values()), self._first)

    async def _events(self) -> AsyncGenerator[Numbered, None]:
        """What comes for all bodies, each with the number of its body."""
        bodies = self._asked.bodies
        if len(bodies) == 1:
            async with contextlib.aclosing(self._ask(bodies[0])) as events:
                async for found in events:
                    yield 0, found
            return
        inbox: asyncio.Queue[Numbered | Failed] = asyncio.Queue()
        tasks = [asyncio.create_task(self._forward(number, body, inbox)) for number, body in enumerate(bodies)]
        try:
            left = len(bodies)
            while left:
                item = await inbox.get()
                if isinstance(item, Failed):
                    raise item
                left -= isinstance(item[1], Answer)
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, number: int, body: dict[str, Any], inbox: asyncio.Queue[Numbered | Failed]) -> None:
        try:
            async with contextlib.aclosing(self._ask(body)) as events:
                async for found in events:
                    inbox.put_nowait((number, found))
        except Failed as failed:
            inbox.put_nowait(failed)
        except Exception:
            inbox.put_nowait(Failed(INTERNAL))
            raise

    def _note(self, number: int, found: Event) -> None:
        if isinstance(found, Begun):
            self._named = found.device
        elif isinstance(found, Answer):
            self._answers[number] = found

    @property
    def _who(self) -> dict[str, str]:
        return {**self._headers, **({"x-edge-device": self._named} if self._named else {})}

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._events()) as events:
                async for number, found in events:
                    self._note(number, found)
        except Failed as failed:
            self._status = failed.problem.status
            await problem_response(failed.problem, self._who)(scope, receive, send)
            return
        self._status = 200
        common: dict[str, Any] = {"id": self._id, "created": self._created}
        common["fingerprint"] = answers.fingerprint(self._device(self._named))
        ordered = [self._answers[number] for number in sorted(self._answers)]
        if self._asked.kind == "chat":
            document = answers.chat_completion(ordered[0], **common)
        else:
            document = answers.text_completion(ordered, **common)
        await Json(document, headers=self._who)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        began = time.monotonic()
        chunks: Chunks | None = None
        silent = 0
        try:
            async with contextlib.aclosing(self._events()) as events:
                async for number, found in events:
                    self._note(number, found)
                    if isinstance(found, Begun):
                        chunks = chunks or self._chunks(found.device)
                        continue
                    if isinstance(found, Waiting):
                        silent += 1
                        if silent % HOLD_TICKS == 0:
                            await self._send(send, WAITING)
                        continue
                    assert chunks is not None
                    if self._first is None:
                        self._first = time.monotonic() - began
                    silent = 0
                    made = chunks.piece(found, number) if isinstance(found, Piece) else chunks.end(found, number)
                    await self._send(send, b"".join(map(event, made)))
            assert chunks is not None
            await self._send(send, b"".join(map(event, chunks.usage())) + DONE, more=False)
        except Failed as failed:
            self._status = failed.problem.status
            await self._fail(send, failed.problem)

    def _chunks(self, device: str) -> Chunks:
        return Chunks(
            chat=self._asked.kind == "chat",
            id=self._id,
            created=self._created,
            device=self._device(device),
            include_usage=self._asked.include_usage,
            n=self._asked.n,
        )

    async def _begin(self, send: Send, status: int, headers: dict[str, str]) -> None:
        self._started = True
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        if not self._started:
            kind = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
            # Else nginx gathers the stream before it hands it on.
            await self._begin(send, 200, {**kind, "x-accel-buffering": "no", **self._who})
        if not more:
            self._status = 200
        if data or not more:
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _fail(self, send: Send, problem: Problem) -> None:
        if self._started:
            # OpenAI's clients raise at an event with an error.
            await send({"type": "http.response.body", "body": event(problem.body), "more_body": False})
            return
        headers = {"content-type": "application/json", **self._who, **problem.headers}
        await self._begin(send, problem.status, headers)
        await send({"type": "http.response.body", "body": msgspec.json.encode(problem.body), "more_body": False})
