"""Puts the console together: one ASGI application, to be mounted behind whatever else the service answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from contract.errors import EdgeBundleError, RequestInvalid
from fleet.access.throttle import Throttle
from fleet.http.metrics import Sample
from fleet.store import accounts as accounts_store
from fleet.web import assets, stream
from fleet.web.api import openapi, serving
from fleet.web.api.operations import OPERATIONS
from fleet.web.guard import SecurityHeaders
from fleet.web.pages import accounts, devices, entrance, page, reading, rollouts
from fleet.web.pages.playground import Playground
from fleet.web.refresh import CatalogueRefresh
from fleet.web.settings import Settings


class Console:
    """The console and its API, as a part of what a process serves. Its routes take every path, so they come last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._playground = Playground(settings)
        self._refresh = CatalogueRefresh(settings)

    def routes(self) -> Sequence[BaseRoute]:
        app = Starlette(routes=[*_api(self._settings), *_pages(self._settings, self._playground)])
        return [Mount("/", SecurityHeaders(app, is_https=self._settings.is_https))]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._playground.lifespan(), self._refresh.running():
            yield

    def problems(self) -> dict[str, str]:
        """The database may be away: nothing can be shown then."""
        try:
            with self._settings.database.read() as connection:
                accounts_store.count(connection)
        except EdgeBundleError as error:
            return {"database": error.message}
        return {}

    def warnings(self) -> dict[str, str]:
        """Bundles may be older than the page says."""
        return {"repository": self._refresh.fault} if self._refresh.fault else {}

    def samples(self) -> Sequence[Sample]:
        return ()


def _api(settings: Settings) -> list[BaseRoute]:
    described = msgspec.json.encode(openapi.describe_api())

    async def describe(_request: Request) -> Response:
        return Response(described, media_type="application/json")

    async def unknown(_request: Request) -> Response:
        return serving.failure(
            RequestInvalid(
                "there is no such address; GET /api/v1/openapi.json describes the API", code=404, kind="not_found"
            )
        )

    return [
        Route("/api/v1/openapi.json", describe),
        stream.make_route(settings),
        *(serving.make_route(each, settings) for each in OPERATIONS),
        Route("/api/{rest:path}", unknown, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]


def _pages(settings: Settings, playground: Playground) -> list[BaseRoute]:
    async def unknown(_request: Request) -> Response:
        return page.failure_page(RequestInvalid("there is no such page", code=404, kind="not_found"), None)

    every = (
        *reading.PAGES,
        *devices.PAGES,
        *rollouts.PAGES,
        *accounts.PAGES,
        *entrance.make_pages(Throttle()),
    )
    entrances: list[Route] = []
    if settings.oidc is not None:
        # Authlib is loaded by those alone who use it.
        from fleet.web.pages.oidc import make_routes

        entrances = make_routes(settings, settings.oidc)
    return [
        assets.make_route(),
        *entrances,
        *(page.make_route(each, settings) for each in every),
        *playground.routes(),
        Route("/{rest:path}", unknown, methods=["GET", "POST"]),
    ]
