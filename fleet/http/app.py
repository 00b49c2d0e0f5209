"""Puts the parts of a process together to one application: each has routes, says how it is, and counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from fleet.http.metrics import TYPE, Sample, page


class Part(Protocol):
    """What a role brings along."""

    def routes(self) -> Sequence[BaseRoute]:
        """Its paths."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Around the whole life of the server."""

    def problems(self) -> dict[str, str]:
        """What keeps it from its work now: a name and a sentence each."""

    def warnings(self) -> dict[str, str]:
        """What is wrong although it works."""

    def samples(self) -> Sequence[Sample]:
        """What it counted."""


def make_app(parts: Sequence[Part], *, origins: Sequence[str] = ()) -> Starlette:
    """The application of ``parts``; web pages of ``origins`` may use it."""

    async def healthz(_: Request) -> Response:
        # They may ask a database that is away, which takes its time.
        asked = await asyncio.gather(*(asyncio.to_thread(part.problems) for part in parts))
        problems = {name: text for each in asked for name, text in each.items()}
        warnings = {name: text for part in parts for name, text in part.warnings().items()}
        status = "unavailable" if problems else "degraded" if warnings else "ok"
        document = {"status": status, "problems": problems, "warnings": warnings}
        return JSONResponse(document, 503 if problems else 200)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(page([each for part in parts for each in part.samples()]), media_type=TYPE)

    async def refused(_: Request, error: Exception) -> Response:
        # The shape of OpenAI's errors: its clients read no other.
        assert isinstance(error, HTTPException)
        text = {404: "there is no such path", 405: "this path has no such method"}.get(error.status_code, error.detail)
        body = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": body}, error.status_code, error.headers)

    async def failed(_: Request, _error: Exception) -> Response:
        body = {"message": "the server failed at this request; its log says why", "type": "server_error"}
        return JSONResponse({"error": {**body, "param": None, "code": "internal_error"}}, 500)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for part in parts:
                await stack.enter_async_context(part.running())
            yield

    routes = [
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        *(each for part in parts for each in part.routes()),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
    )
    return Starlette(
        routes=routes,
        middleware=[cors] if origins else [],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=lifespan,
    )
