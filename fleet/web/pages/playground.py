"""The playground: a prompt to a device, and its answer as it comes, in one page that needs no script."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from markupsafe import escape
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from contract.errors import EdgeBundleError, RequestInvalid, SourceUnavailable
from edge_bundle import AsyncClient
from fleet.access.roles import Permission
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
        self._client: AsyncClient | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Closes the connection at the end."""
        try:
            yield
        finally:
            if self._client is not None:
                await self._client.close()
                self._client = None

    async def _connected(self) -> AsyncClient:
        """Raises:
        SourceUnavailable: no broker, or it is away.
        """
        if self._settings.broker is None:
            raise SourceUnavailable("no broker is configured")
        async with self._lock:
            if self._client is None:
                client = AsyncClient(self._settings.broker, root=self._settings.topic_root)
                await client.connect()
                self._client = client
            return self._client

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
                fields = read_question(view)
            except RequestInvalid as error:
                fault = error.message
                return await run_in_threadpool(lambda: respond(self._page(view, fault=fault), view))
            marker = secrets.token_hex(16)
            page = await run_in_threadpool(self._begin, view, fields, marker)
        except Exception as error:
            return failure_page(error, identity)
        head, _, tail = page.partition(marker)
        return StreamingResponse(self._stream(head, tail, fields), media_type="text/html; charset=utf-8")

    def _page(self, view: View, *, fault: str = "", marker: str = "") -> Shown:
        with self._settings.database.read() as connection:
            traits = devices.traits(connection)
        online = [each for each in traits if each.online and each.bundle]
        groups = sorted({f"group:{group}" for each in online for group in each.groups})
        given = {name: view.form.get(name, "") for name in ("target", "prompt", "system", "max_tokens")}
        given["target"] = given["target"] or view.query.get("target", "")
        targets = [*groups, *(each.device for each in online)][:SHOWN_TARGETS]
        values = {"targets": targets, "given": given, "fault": fault, "asked": bool(marker), "marker": marker}
        return Shown("playground.html", values, 400 if fault else 200)

    def _begin(self, view: View, fields: dict[str, Any], marker: str) -> str:
        """The page around the answer; who asked whom is written down, and not what."""
        subject = fields.get("device") or f"group {fields['group']}"
        with self._settings.database.write() as connection:
            audit.record(
                connection,
                at=view.now,
                actor=view.who.name,
                action="prompt",
                subject=subject,
                detail=view.who.actor.detail({}),
            )
        return render("playground.html", self._page(view, marker=marker).values | common(view.identity, view.query))

    async def _stream(self, head: str, tail: str, fields: dict[str, Any]) -> AsyncIterator[str]:
        yield head
        try:
            client = await self._connected()
            # Whoever leaves the page closes this, which ends the request on the device.
            async with aclosing(client.stream(timeout=ANSWER_SECONDS, **fields)) as chunks:
                async for chunk in chunks:
                    if chunk.restart:
                        yield "\n[the device was restarted and begins again]\n"
                    for choice in chunk.choices:
                        if choice.delta.content:
                            yield str(escape(choice.delta.content))
        except EdgeBundleError as error:
            yield str(escape(f"\n[{error.message}]"))
        except Exception:
            log.exception("an answer failed, which is our fault")
            yield "\n[this is a fault of ours; the log of the service has it]"
        yield tail


def read_question(view: View) -> dict[str, Any]:
    """What a device is asked.

    Raises:
        RequestInvalid: the form does not say it.
    """
    target, prompt = view.form.get("target", "").strip(), view.form.get("prompt", "")
    system, tokens = view.form.get("system", ""), view.form.get("max_tokens", "") or "256"
    if not target:
        raise RequestInvalid("say which device, or group:NAME", field="target")
    if not prompt.strip():
        raise RequestInvalid("say something to it", field="prompt")
    if len(prompt) + len(system) > MAX_PROMPT:
        raise RequestInvalid(f"prompt and instructions have {MAX_PROMPT:,} characters at most", field="prompt")
    if not tokens.isascii() or not tokens.isdigit() or not 1 <= int(tokens[:9]) <= MAX_TOKENS:
        raise RequestInvalid(f"tokens are a number from 1 to {MAX_TOKENS}", field="max_tokens")
    messages = [{"role": "user", "content": prompt}]
    if system.strip():
        messages.insert(0, {"role": "system", "content": system})
    kind, _, name = target.partition(":")
    where = {"group": name.strip()} if kind == "group" and name else {"device": target}
    return {**where, "messages": messages, "max_tokens": int(tokens)}
