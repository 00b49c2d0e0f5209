"""Puts the parts of a process together to one application: each has routes, says how it is, and counts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from starlette.applications import Starlette
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

    def samples(self) -> Sequence[Sample]:
        """What it counted."""


def make_app(parts: Sequence[Part], *, origins: Sequence[str] = ()) -> Starlette:
    """The application of ``parts``; web pages of ``origins`` may use it."""

    async def healthz(_: Request) -> Response:
        problems = {name: text for part in parts for name, text in part.problems().items()}
        status = 503 if problems else 200
        return JSONResponse({"status": "unavailable" if problems else "ok", "problems": problems}, status)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(page([each for part in parts for each in part.samples()]), media_type=TYPE)

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
    return Starlette(routes=routes, middleware=[cors] if origins else [], lifespan=lifespan)
