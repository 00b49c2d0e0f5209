"""The playground: a prompt to a device, and its answer as it comes, in one page that needs no script."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import msgspec
from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from contract.errors import EdgeBundleError, RequestInvalid, SourceUnavailable
from edge_bundle import AsyncClient
from edge_bundle.replies import Piece
from fleet.access.roles import Permission
from fleet.gateway.asking import Begun, Event, Failed
from fleet.gateway.models import read_model
from fleet.gateway.requests import Asked, read_chat
from fleet.gateway.routing import Routing
from fleet.gateway.shared_client import SharedClient
from fleet.store import audit, devices
from fleet.web import guard
from fleet.web.pages.page import (
    Shown,
    View,
    check_form,
    common,
    failure_page,
    identity_of,
    read_view,
    respond,
    to_sign_in,
)
from fleet.web.pages.rendering import render
from fleet.web.settings import Settings

log = logging.getLogger("edge_fleet.web")

MAX_PROMPT = 32_000
"""Characters; what fits a device's context it says itself."""

MAX_TOKENS = 4096
ANSWER_SECONDS = 300.0
SHOWN_TARGETS = 500


class Playground:
    """One connection to the broker, made when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = None if settings.broker is None else SharedClient(settings.broker, settings.topic_root)
        self._routing = Routing(seconds=ANSWER_SECONDS)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Closes the connection at the end."""
        try:
            yield
        finally:
            if self._client is not None:
                await self._client.close()

    async def _connected(self) -> AsyncClient:
        """Raises:
        SourceUnavailable: no broker, or it is away.
        """
        if self._client is None:
            raise SourceUnavailable("no broker is configured")
        return await self._client.connected()

    def routes(self) -> list[Route]:
        return [
            Route("/playground", self._show, methods=["GET"]),
            Route("/playground", self._ask, methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        return await self._answered(request, b"")

    async def _ask(self, request: Request) -> Response:
        try:
            body = await guard.read_body(request)
        except RequestInvalid as error:
            return failure_page(error, None)
        return await self._answered(request, body)

    async def _answered(self, request: Request, body: bytes) -> Response:
        identity = None
        try:
            guard.check_host(request, self._settings.url)
            identity = await run_in_threadpool(identity_of, request, self._settings)
            if identity is None:
                return to_sign_in(request)
            view = read_view(request, self._settings, body, identity)
            identity.require(Permission.PROMPT)
            if request.method != "POST":
                return await run_in_threadpool(lambda: respond(self._page(view), view))
            check_form(request, view)
            try:
                asked = read_question(view)
            except RequestInvalid as error:
                fault = error.message
                return await run_in_threadpool(lambda: respond(self._page(view, fault=fault), view))
            marker = secrets.token_hex(16)
            page = await run_in_threadpool(self._begin, view, asked, marker)
        except Exception as error:
            return failure_page(error, identity)
        head, _, tail = page.partition(marker)
        return StreamingResponse(self._stream(head, tail, asked), media_type="text/html; charset=utf-8")

    def _page(self, view: View, *, fault: str = "", marker: str = "") -> Shown:
        with self._settings.database.read() as connection:
            traits = devices.traits(connection)
        online = [each for each in traits if each.online and each.bundle]
        bundles = {name for each in online for name in (each.bundle.partition("@")[0], each.bundle)}
        groups = {f"group:{group}" for each in online for group in each.groups}
        given = {name: view.form.get(name, "") for name in ("target", "prompt", "system", "max_tokens")}
        given["target"] = given["target"] or view.query.get("target", "")
        targets = [*sorted(bundles), *sorted(groups), *(f"device:{each.device}" for each in online)][:SHOWN_TARGETS]
        values = {"targets": targets, "given": given, "fault": fault, "asked": bool(marker), "marker": marker}
        return Shown("playground.html", values, 400 if fault else 200)

    def _begin(self, view: View, asked: Asked, marker: str) -> str:
        """The page around the answer; who asked whom is written down, and not what."""
        with self._settings.database.write() as connection:
            audit.record(
                connection,
                at=view.now,
                actor=view.who.name,
                action="prompt",
                subject=asked.model,
                detail=view.who.actor.detail({}),
            )
        return render("playground.html", self._page(view, marker=marker).values | common(view.identity, view.query))

    async def _stream(self, head: str, tail: str, asked: Asked) -> AsyncIterator[str]:
        yield head
        try:
            client = await self._connected()
            found = self._routing.ask(client, read_model(asked.model), asked, asked.bodies[0])
            # Whoever leaves the page closes this, which ends the request on the device.
            async with aclosing(found) as events:
                async for event in events:
                    yield _shown(event)
        except Failed as failed:
            yield str(escape(f"\n[{failed.problem.message}]"))
        except EdgeBundleError as error:
            yield str(escape(f"\n[{error.message}]"))
        except Exception:
            log.exception("an answer failed, which is our fault")
            yield "\n[this is a fault of ours; the log of the service has it]"
        yield tail


def _shown(event: Event) -> str:
    """What of it is shown: who answers, and what."""
    match event:
        case Begun(device):
            return str(Markup('<span class="faint">{}</span>\n').format(f"{device} answers"))
        case Piece(restart=True):
            return "\n[the device was restarted and begins again]\n" + str(escape(event.text))
        case Piece():
            return str(escape(event.text))
    return ""


def read_question(view: View) -> Asked:
    """What is asked, and of whom: ``model`` as the gateway has it.

    Raises:
        RequestInvalid: the form does not say it.
    """
    target, prompt = view.form.get("target", "").strip(), view.form.get("prompt", "")
    system, tokens = view.form.get("system", ""), view.form.get("max_tokens", "") or "256"
    if not target:
        raise RequestInvalid("say who is asked: device:NAME, group:NAME or a bundle", field="target")
    if not prompt.strip():
        raise RequestInvalid("say something to it", field="prompt")
    if len(prompt) + len(system) > MAX_PROMPT:
        raise RequestInvalid(f"prompt and instructions have {MAX_PROMPT:,} characters at most", field="prompt")
    if not tokens.isascii() or not tokens.isdigit() or not 1 <= int(tokens[:9]) <= MAX_TOKENS:
        raise RequestInvalid(f"tokens are a number from 1 to {MAX_TOKENS}", field="max_tokens")
    messages = [{"role": "user", "content": prompt}]
    if system.strip():
        messages.insert(0, {"role": "system", "content": system})
    return read_chat(msgspec.json.encode({"model": target, "messages": messages, "max_tokens": int(tokens)}))
