"""The gateway as a part of the HTTP server: its paths, its connection to the broker, its counts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp

from contract.errors import EdgeBundleError, RequestInvalid, SourceUnavailable
from edge_bundle.async_client import AsyncClient
from edge_bundle.broker import BrokerAddress
from edge_bundle.presence import Presence
from edge_bundle.replies import Answer
from fleet.gateway.access import Access, Grant
from fleet.gateway.choice import is_able
from fleet.gateway.counts import Counts
from fleet.gateway.models import listing, not_found, read_model
from fleet.gateway.problems import of_error
from fleet.gateway.requests import Asked, read_chat, read_completion
from fleet.gateway.responding import CLIENT_CLOSED, Answering, Json, problem_response
from fleet.gateway.routing import Routing
from fleet.gateway.shared_client import SharedClient
from fleet.http.body import ClientGone, read_body
from fleet.http.metrics import Sample

log = logging.getLogger("edge_fleet.gateway")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Before the next attempt to reach the broker."""


class Gateway:
    """A :class:`fleet.http.app.Part`. ``access`` lets requests in; a request may take ``seconds``."""

    def __init__(self, address: BrokerAddress, root: str, access: Access, *, seconds: float = 600.0) -> None:
        self._access = access
        self._client = SharedClient(address, root)
        self._problem = "it has just started"
        self._created = int(time.time())
        self._counts = Counts()
        self._routing = Routing(seconds=seconds, on_another=self._counts.asked_another)

    def routes(self) -> Sequence[BaseRoute]:
        """OpenAI's paths."""
        known = [
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
        ]

        async def other(request: Request) -> Response:
            matched = [route for route in known if route.matches(request.scope)[0] is not Match.NONE]
            methods = sorted({method for route in matched for method in route.methods or ()})
            raise HTTPException(405 if matched else 404, headers={"allow": ", ".join(methods)} if matched else None)

        # Nobody else answers below /v1, in a shape that no client of OpenAI's reads.
        return [*known, Route("/v1", other, methods=METHODS), Route("/v1/{rest:path}", other, methods=METHODS)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connected to the broker, as soon as and as long as it is there."""
        connecting = asyncio.create_task(self._connect())
        try:
            async with self._access.running():
                yield
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await self._client.close()

    async def _connect(self) -> None:
        failures = 0
        while True:
            try:
                client = await self._client.connected()
            except EdgeBundleError as error:
                self._problem = error.message
                wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                log.warning("%s; next attempt in %.0f s", error.message, wait)
                failures += 1
                await asyncio.sleep(wait)
                continue
            self._problem = ""
            log.info("the gateway knows %d devices", len(client.presence.devices()))
            return

    def problems(self) -> dict[str, str]:
        """That the broker is away."""
        if self._problem:
            return {"gateway": self._problem}
        if self._client.now is None or not self._client.now.connected:
            return {"gateway": f"the broker {self._client.address.name} is away"}
        return {}

    def warnings(self) -> dict[str, str]:
        """That keys cannot be looked up."""
        return self._access.warnings()

    def samples(self) -> Sequence[Sample]:
        """Requests, tokens, times, devices."""
        known = {} if self._client.now is None else self._client.now.presence.devices()
        online = [each for each in known.values() if each.online]
        return self._counts.samples(online=len(online), ready=sum(map(is_able, online)))

    def _asking_client(self) -> AsyncClient:
        client, problems = self._client.now, self.problems()
        if client is None or problems:
            raise SourceUnavailable(f"no device can be asked: {problems['gateway']}", retry_after=2.0)
        return client

    async def _models(self, request: Request) -> Response:
        async def answer(grant: Grant, presence: Presence) -> Response:
            found = [each for each in listing(presence, created=self._created) if grant.may_ask(each["id"])]
            return Json({"object": "list", "data": found})

        return await self._look(request, answer)

    async def _model(self, request: Request) -> Response:
        name = str(request.path_params["model"])

        async def answer(grant: Grant, presence: Presence) -> Response:
            _check_model(grant, name)
            found = [each for each in listing(presence, created=self._created, offline=True) if each["id"] == name]
            if not found:
                raise not_found(name, presence)
            return Json(found[0])

        return await self._look(request, answer)

    async def _look(self, request: Request, answer: Callable[[Grant, Presence], Any]) -> Response:
        began = time.monotonic()
        try:
            grant = await self._access.admit(request.headers.get("authorization"))
            response: Response = await answer(grant, self._asking_client().presence)
        except EdgeBundleError as error:
            response = problem_response(of_error(error))
        self._counts.ended("/v1/models", response.status_code, time.monotonic() - began)
        return response

    async def _chat(self, request: Request) -> ASGIApp:
        return await self._answer(request, read_chat, "chatcmpl")

    async def _completion(self, request: Request) -> ASGIApp:
        return await self._answer(request, read_completion, "cmpl")

    async def _answer(self, request: Request, read: Callable[[bytes], Asked], prefix: str) -> ASGIApp:
        began = time.monotonic()
        path = request.url.path
        id = f"{prefix}-{secrets.token_hex(12)}"
        headers = {"x-request-id": id}
        try:
            grant = await self._access.admit(request.headers.get("authorization"))
            headers |= grant.headers
            asked = read(await read_body(request))
            _check_model(grant, asked.model)
            client = self._asking_client()
            wanted = read_model(asked.model)
            # Here, so that what nobody can answer costs nothing and is answered at once.
            self._routing.pick(client.presence, wanted, asked)
            grant.reserve(asked.estimate)
            headers |= grant.headers
        except ClientGone:
            self._counts.ended(path, CLIENT_CLOSED, time.monotonic() - began)
            return Response(status_code=CLIENT_CLOSED)
        except EdgeBundleError as error:
            problem = of_error(error)
            self._counts.ended(path, problem.status, time.monotonic() - began)
            return problem_response(problem, headers)

        def over(status: int, answered: list[Answer], first: float | None) -> None:
            self._counts.in_flight -= 1
            usages = [each.last.usage for each in answered if each.last is not None]
            prompt, answer = sum(each.prompt_tokens for each in usages), sum(each.completion_tokens for each in usages)
            self._counts.tokens(prompt, answer)
            grant.settle(prompt + answer)
            if first is not None:
                self._counts.first_chunk(first)
            self._counts.ended(path, status, time.monotonic() - began)

        self._counts.in_flight += 1
        return Answering(
            asked,
            id=id,
            created=int(time.time()),
            headers=headers,
            ask=lambda body: self._routing.ask(client, wanted, asked, _owned(body, grant.owner)),
            device=client.presence.device,
            over=over,
        )


def _check_model(grant: Grant, model: str) -> None:
    if not grant.may_ask(model):
        raise RequestInvalid(
            f"this key may not ask {model!r}: GET /v1/models lists what it may",
            field="model",
            code=403,
            kind="model_not_allowed",
        )


def _owned(body: dict[str, Any], owner: str) -> dict[str, Any]:
    """``body`` so that it touches requests of its owner alone."""
    key = body.get("supersede_key")
    if key is not None:
        # For a device all of them come from one client, the gateway.
        body = {**body, "supersede_key": hashlib.sha256(f"{owner}/{key}".encode()).hexdigest()[:32]}
    return body
