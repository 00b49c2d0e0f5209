"""Bodies of requests: bounded in size and in time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from contract.errors import RequestInvalid

MAX_BODY_BYTES = 1 << 20
"""What a device takes (docs/MQTT.md): a prompt of 128k tokens is about 512 KB of text."""

BODY_SECONDS = 30.0
"""For a whole body: 1 MiB over a line of 300 kbit/s."""


class ClientGone(Exception):
    """The client left before its request was complete; nobody hears an answer."""


async def read_body(request: Request, *, max_bytes: int = MAX_BODY_BYTES, seconds: float = BODY_SECONDS) -> bytes:
    """The whole body.

    Raises:
        RequestInvalid: it is too large (413), too slow (408), or of a type that is not JSON (415). ClientGone.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestInvalid(f"the body is {kind[:64]!r}: send application/json", code=415)
    too_large = RequestInvalid(
        f"the request has more than the {max_bytes:,} bytes that a device takes: shorten it", code=413
    )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise RequestInvalid(f"the body was not complete within {seconds:g} s", code=408) from error
    except ClientDisconnect as error:
        raise ClientGone from error
    return bytes(body)
