"""Scripts and styles: files of this package, each under a name with its digest, so that browsers keep them for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


class Asset(NamedTuple):
    content: bytes
    media_type: str


@cache
def assets() -> Mapping[str, Asset]:
    """By their names."""
    found = {}
    for each in files("fleet.web").joinpath("static").iterdir():
        suffix = each.name[each.name.rfind(".") :]
        if suffix in TYPES:
            found[each.name] = Asset(each.read_bytes(), TYPES[suffix])
    return found


@cache
def asset_url(name: str) -> str:
    """Where ``name`` is served."""
    return f"/static/{hashlib.sha256(assets()[name].content).hexdigest()[:16]}/{name}"


def make_route() -> Route:
    """Names under another digest than theirs are not there: nobody keeps an old page's address for a new file."""

    async def endpoint(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in assets() or request.url.path != asset_url(name):
            return Response("no such file", 404, media_type="text/plain")
        found = assets()[name]
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return Response(found.content, headers=headers, media_type=found.media_type)

    return Route("/static/{digest}/{name}", endpoint, name="static")
