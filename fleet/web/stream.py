"""Server-sent events: what happens, as it happens, and after a broken connection what happened meanwhile.

The numbers of the last line of the audit log and of the last event of a device are the id: whoever comes back with it
gets what came since. The state of a rollout and samples of a device are sent as they are now, whenever they differ.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from contract.errors import EdgeBundleError, RequestInvalid
from fleet.access.roles import Permission
from fleet.describe import describe_rollout, describe_sample
from fleet.documents import AuditDocument, EventDocument
from fleet.rollout.counters import Counters
from fleet.store import audit, counters, devices, rollouts
from fleet.store.database import Transaction
from fleet.web import guard
from fleet.web.api.operation import Parameter
from fleet.web.api.serving import authenticate, failure
from fleet.web.settings import Settings

LOOK_SECONDS = 1.0
"""Between two looks at the database."""

ALIVE_SECONDS = 15.0
"""Between two comments, which keep proxies from closing a quiet connection."""

PROVE_SECONDS = 30.0
"""Between two looks whether the session or token still holds."""

MAX_STREAMS = 200
"""Of one process: each looks at the database by itself."""

MAX_MISSED = 500
"""Lines that are sent after; who missed more has to look again."""

_ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


class Watched(msgspec.Struct):
    """How far one listener is. ``sample``: when and what its device counted last."""

    device: str | None
    rollout: int | None
    lines: int = 0
    happened: int = 0
    shown: bytes = b""
    states: tuple[Any, ...] = ()
    sample: tuple[float, Counters, float | None] | None = None

    @property
    def id(self) -> str:
        return f"{self.lines}-{self.happened}"


def begin(connection: Transaction, watched: Watched, last: str | None) -> list[bytes]:
    """Where a listener is: at what is now, or where it was before."""
    watched.lines, watched.happened = audit.last_id(connection), devices.last_event_id(connection)
    match = _ID.fullmatch(last or "")
    if match is None:
        return [b": begins\n\n"]
    lines, happened = int(match[1]), int(match[2])
    missed = max(watched.lines - lines, watched.happened - happened if watched.device else 0)
    if missed > MAX_MISSED or lines > watched.lines or happened > watched.happened:
        return [frame("reset", {}, watched.id)]
    watched.lines, watched.happened = lines, happened
    return [b": goes on\n\n"]


def look(connection: Transaction, watched: Watched) -> list[bytes]:
    """What is new for a listener."""
    found: list[bytes] = []
    for line in audit.entries(connection, after=watched.lines, limit=MAX_MISSED):
        watched.lines = line.id
        found.append(frame("audit", AuditDocument(**line._asdict()), watched.id))
    if watched.device is not None:
        found += _look_at_device(connection, watched, watched.device)
    if watched.rollout is not None:
        found += _look_at_rollout(connection, watched, watched.rollout)
    return found


def _look_at_device(connection: Transaction, watched: Watched, name: str) -> list[bytes]:
    found = []
    for number, event in devices.events_after(connection, watched.happened, name, MAX_MISSED):
        watched.happened = number
        found.append(frame("event", EventDocument(event.at, event.device, event.kind, event.detail), watched.id))
    sample = counters.latest(connection, name)
    if sample is not None and (watched.sample is None or sample[0] > watched.sample[0]):
        if watched.sample is not None:
            found.append(frame("sample", describe_sample(watched.sample, sample), watched.id))
        watched.sample = sample
    return found


def _look_at_rollout(connection: Transaction, watched: Watched, number: int) -> list[bytes]:
    overview = rollouts.overview(connection, number)
    document = describe_rollout(overview.rollout, overview.counts)
    shown = msgspec.json.encode(document)
    if shown == watched.shown:
        return []
    states = (document.state, document.reason, [(wave.number, wave.state) for wave in document.waves])
    found = [frame("rollout", document, watched.id)]
    if watched.shown and states != watched.states:
        found.append(frame("state", {"state": document.state}, watched.id))
    watched.shown, watched.states = shown, states
    return found


def frame(event: str, document: Any, number: str) -> bytes:
    """One event; JSON has no line breaks."""
    return b"event: %b\nid: %b\ndata: %b\n\n" % (event.encode(), number.encode(), msgspec.json.encode(document))


def make_route(settings: Settings) -> Route:
    """``/api/v1/stream``."""
    open_streams = 0

    async def endpoint(request: Request) -> Response:
        nonlocal open_streams
        try:
            guard.check_host(request, settings.url)
            watched = await run_in_threadpool(_read, request, settings)
            if open_streams >= MAX_STREAMS:
                raise RequestInvalid(f"there are {MAX_STREAMS} listeners already", code=503, kind="busy")
            first = await run_in_threadpool(
                _in_transaction, settings, begin, watched, request.headers.get("last-event-id")
            )
        except Exception as error:
            return failure(error)
        open_streams += 1

        async def send() -> AsyncIterator[bytes]:
            nonlocal open_streams
            try:
                for each in first:
                    yield each
                async for each in _follow(request, settings, watched):
                    yield each
            finally:
                open_streams -= 1

        return StreamingResponse(send(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    return Route("/api/v1/stream", endpoint, name="stream")


def _read(request: Request, settings: Settings) -> Watched:
    authenticate(request, settings).require(Permission.READ)
    given = dict(request.query_params)
    device, rollout = given.pop("device", None), given.pop("rollout", None)
    if given:
        raise RequestInvalid(f"there is no parameter {next(iter(given))[:64]!r}", field=next(iter(given))[:64])
    number = None if rollout is None else Parameter("rollout", "", "integer").read(rollout)
    with settings.database.read() as connection:
        if device is not None:
            devices.find(connection, device)
        if number is not None:
            rollouts.overview(connection, number)
    return Watched(device, number)


async def _follow(request: Request, settings: Settings, watched: Watched) -> AsyncIterator[bytes]:
    quiet = proved = 0.0
    while True:
        try:
            if proved >= PROVE_SECONDS:
                await run_in_threadpool(authenticate, request, settings)
                proved = 0.0
            found = await run_in_threadpool(_in_transaction, settings, look, watched)
        except RequestInvalid:
            # Signed out, or what was watched is gone: whoever comes back is told.
            return
        except EdgeBundleError:
            found = []
        if found or quiet >= ALIVE_SECONDS:
            quiet = 0.0
            yield b"".join(found) or b": alive\n\n"
        await anyio.sleep(LOOK_SECONDS)
        quiet += LOOK_SECONDS
        proved += LOOK_SECONDS


def _in_transaction(settings: Settings, function: Any, *arguments: Any) -> list[bytes]:
    with settings.database.read() as connection:
        found: list[bytes] = function(connection, *arguments)
    return found
