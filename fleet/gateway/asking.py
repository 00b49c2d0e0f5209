"""Asks a device, and another one where that is safe; yields what comes as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from typing import Any

from msgspec import Struct

from contract.errors import EdgeBundleError, SourceUnavailable
from edge_bundle.async_client import AsyncClient
from edge_bundle.replies import Answer, Found, Piece
from fleet.gateway.problems import Problem, may_ask_another, of_device, of_error, timed_out

MAX_DEVICES_ASKED = 4
"""For one request: where so many have no room, more will not have any either."""

MAX_LOST = 1
"""Devices that may vanish with a request before it is given up: it may be what brings them down."""

TICK_SECONDS = 1.0
"""How often it is looked whether the device is still there."""

GONE_SECONDS = 5.0
"""A device that is offline for so long has gone; before, its connection broke and comes back with the answer."""

REQUEST_SECONDS = 600.0
"""For one request, all devices together: a long answer of a small box, behind others in its queue."""


class Failed(Exception):
    """The request ends with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Begun(Struct, frozen=True):
    """A device is asked; those before it had no room or vanished."""

    device: str


class Waiting(Struct, frozen=True):
    """Nothing came for :data:`TICK_SECONDS`."""


Event = Begun | Waiting | Piece | Answer

Pick = Callable[[Collection[str]], str]
"""The next device to ask, which is none of these.

Raises:
    EdgeBundleError: there is none.
"""


async def ask(
    client: AsyncClient,
    body: dict[str, Any],
    pick: Pick,
    in_flight: Counter[str],
    *,
    seconds: float = REQUEST_SECONDS,
    gone_after: float = GONE_SECONDS,
) -> AsyncGenerator[Event, None]:
    """Ask until one answers; an :class:`Answer` is the end and has no error. Closing this ends it on the device.

    Raises:
        Failed: nobody answers it.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + seconds
    tried: list[str] = []
    lost = 0
    problem: Problem | None = None
    body = {**body, "id": secrets.token_hex(12)}
    while len(tried) < MAX_DEVICES_ASKED and lost <= MAX_LOST:
        try:
            device = pick(tried)
        except EdgeBundleError as error:
            raise Failed(problem or of_error(error)) from error
        tried.append(device)
        yield Begun(device)
        try:
            with _counted(in_flight, device):
                attempt = _attempt(client, body, device, max(0.1, deadline - now()), gone_after)
                async with contextlib.aclosing(attempt) as events:
                    async for found in events:
                        yield found
                        if isinstance(found, Answer):
                            return
        except _NotThisOne as away:
            problem = away.problem
            lost += away.lost
    assert problem is not None
    raise Failed(problem)


@contextlib.contextmanager
def _counted(in_flight: Counter[str], device: str) -> Iterator[None]:
    in_flight[device] += 1
    try:
        yield
    finally:
        in_flight[device] -= 1
        if not in_flight[device]:
            del in_flight[device]


class _NotThisOne(Exception):
    """Another device may be asked: this one turned the request away, or is ``lost``, and nothing was shown."""

    def __init__(self, problem: Problem, *, lost: bool) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.lost = lost


async def _attempt(
    client: AsyncClient, body: dict[str, Any], device: str, seconds: float, gone_after: float
) -> AsyncGenerator[Waiting | Piece | Answer, None]:
    """What one device says to it; an :class:`Answer` has no error.

    Raises:
        Failed, _NotThisOne.
    """
    shown = False
    try:
        async with contextlib.aclosing(_watched(client, body, device, seconds, gone_after)) as events:
            async for found in events:
                if isinstance(found, Answer) and found.error is not None:
                    problem = of_device(found.error, device)
                    if shown or not may_ask_another(found.error):
                        raise Failed(problem)
                    raise _NotThisOne(problem, lost=False)
                if isinstance(found, Piece):
                    if found.restart and shown:
                        text = f"{device} began its answer again, after some of it was shown"
                        raise Failed(Problem(503, text, "server_error", "interrupted"))
                    shown = True
                if isinstance(found, Waiting | Piece | Answer):
                    yield found
    except _Gone as gone:
        problem = Problem(503, str(gone), "server_error", "device_gone", None, 1.0)
        raise (Failed(problem) if shown else _NotThisOne(problem, lost=True)) from gone
    except SourceUnavailable as late:
        raise Failed(timed_out(seconds, late.message)) from late
    except EdgeBundleError as error:
        raise Failed(of_error(error)) from error


class _Gone(Exception):
    """The device is offline."""


async def _watched(
    client: AsyncClient, body: dict[str, Any], device: str, seconds: float, gone_after: float
) -> AsyncGenerator[Found | Waiting, None]:
    """What comes from ``device``, with a tick now and then; ends if it goes away."""
    loop = asyncio.get_running_loop()
    asked = client.ask(body, device=device, timeout=seconds, offline="wait")
    coming: asyncio.Task[Found] | None = None
    gone_at: float | None = None
    try:
        while True:
            coming = loop.create_task(_next(asked))
            while not (await asyncio.wait({coming}, timeout=TICK_SECONDS))[0]:
                gone_at = _since(client, device, gone_at, loop.time())
                if gone_at is not None and loop.time() - gone_at >= gone_after:
                    raise _Gone(f"the device {device} went offline before its answer was complete")
                yield Waiting()
            gone_at = None
            yield coming.result()
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await asked.aclose()


async def _next(events: AsyncGenerator[Found, None]) -> Found:
    return await anext(events)


def _since(client: AsyncClient, device: str, gone_at: float | None, now: float) -> float | None:
    """When ``device`` went offline; None while it is online, or nothing can be known."""
    known = client.presence.device(device)
    if not client.connected or (known is not None and known.online):
        return None
    return now if gone_at is None else gone_at
