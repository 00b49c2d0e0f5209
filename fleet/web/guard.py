"""What is let through at all: which host was asked, where a change comes from, how much is read; and the headers that
keep a browser from doing what we do not serve.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.errors import RequestInvalid, UsageError
from fleet.access.secrets import same

MAX_BODY_BYTES = 128 << 10
"""A rollout's specification has 64 KiB at most, and a form writes some characters as three."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; manifest-src 'self'"
)
"""No inline script or style, nothing of anybody else; pictures may be in the page."""

HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)


class SecurityHeaders:
    """ASGI middleware: every answer has :data:`HEADERS`; what is not a file is stored nowhere."""

    def __init__(self, app: ASGIApp, *, is_https: bool) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS]
        if is_https:
            self._headers.append((b"strict-transport-security", b"max-age=31536000"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def begin(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [each for each in self._headers if each[0] not in present]
                if b"cache-control" not in present:
                    added.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, begin if scope["type"] == "http" else send)


def check_url(url: str) -> str:
    """The address that people write in their browsers, without a path.

    Raises:
        UsageError: it is none.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it raises
    except ValueError as error:
        raise UsageError("write --url as https://fleet.example.org") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise UsageError("write --url as https://fleet.example.org, without a path")
    return f"{parts.scheme}://{parts.netloc}"


def client_address(request: Request, proxies: Collection[str]) -> str:
    """Who asks; behind a proxy of ours, who asked it. What others say of themselves is not believed."""
    address = "" if request.client is None else request.client.host
    if address not in proxies:
        return address
    # Each proxy appends whom it heard: the last one that is no proxy of ours is the client.
    heard = [each.strip() for each in request.headers.get("x-forwarded-for", "").split(",") if each.strip()]
    return next((each for each in reversed(heard) if each not in proxies), address)


def check_host(request: Request, url: str | None) -> None:
    """See that it is us who was asked: a name of somebody else that leads here (DNS rebinding) is refused.

    Raises:
        RequestInvalid: it was another host.
    """
    host = request.headers.get("host", "").lower()
    if url is not None and host == urlsplit(url).netloc.lower():
        return
    name = _hostname(host)
    if name == "localhost" or _is_address(name) or (url is None and name == socket.gethostname().lower()):
        return
    raise RequestInvalid(
        f"this console does not answer to the name {name[:80]!r}: start edge-fleet serve with --url",
        code=421,
        field="Host",
    )


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_origin(request: Request, url: str | None) -> None:
    """See that a change was asked for by a page of ours.

    Raises:
        RequestInvalid: another site asked for it, or nothing says who did.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is None and origin is None:
        raise _forbidden("the request says neither Origin nor Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        raise _forbidden("the request comes from another site")
    if origin is not None:
        ours = {request.headers.get("host", "").lower()} | ({urlsplit(url).netloc.lower()} if url else set())
        if urlsplit(origin).netloc.lower() not in ours:
            raise _forbidden("the request comes from another site")


def check_csrf(expected: str, headers: Mapping[str, str], form: Mapping[str, str]) -> None:
    """See that a change brings what only a page of ours has.

    Raises:
        RequestInvalid: it does not.
    """
    given = headers.get(CSRF_HEADER) or form.get(CSRF_FIELD, "")
    if not expected or not same(given, expected):
        raise _forbidden("the page is older than your session: load it again")


def _forbidden(message: str) -> RequestInvalid:
    return RequestInvalid(message, code=403, kind="forbidden")


async def read_body(request: Request) -> bytes:
    """The body, as far as it may be long.

    Raises:
        RequestInvalid: it is longer.
    """
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > MAX_BODY_BYTES:
            raise RequestInvalid(f"the body has more than {MAX_BODY_BYTES:,} bytes", code=413, kind="too_large")
    return bytes(found)
