"""There and back: the two pages of signing in with an OpenID provider."""

from __future__ import annotations

from urllib.parse import quote, unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fleet.access.secrets import make_secret
from fleet.web import guard
from fleet.web.identity import cookie_name
from fleet.web.oidc import Handshake, Provider, admit
from fleet.web.pages.page import failure_page, safe_next, set_session
from fleet.web.settings import OidcSettings, Settings
from fleet.web.sign_in import begin_session

COOKIE = "edge-fleet-oidc"
PATH = "/sign-in/oidc"
SECONDS = 600
"""For signing in at the provider."""


def make_routes(settings: Settings, oidc: OidcSettings) -> list[Route]:
    """They share what is known of the provider."""
    provider = Provider(oidc)

    def redirect_of(request: Request) -> str:
        base = settings.url or f"{request.url.scheme}://{request.headers['host']}"
        return f"{base}{PATH}/back"

    def begin(request: Request) -> Response:
        secret = make_secret()
        url = provider.authorization_url(Handshake(secret), redirect_of(request))
        response = RedirectResponse(url, 303)
        value = f"{secret}.{quote(safe_next(request.query_params.get('next', '')), safe='')}"
        response.set_cookie(
            COOKIE, value, max_age=SECONDS, path=PATH, httponly=True, samesite="lax", secure=settings.is_https
        )
        return response

    def come_back(request: Request) -> Response:
        secret, _, following = request.cookies.get(COOKIE, "").partition(".")
        # Without a cookie nothing is the answer to it.
        claims = provider.claims(Handshake(secret or make_secret()), request.query_params, redirect_of(request))
        name = admit(settings.database, oidc, claims, settings.clock())
        session = begin_session(
            settings.database,
            name,
            address=guard.client_address(request, settings.proxies),
            previous=request.cookies.get(cookie_name(settings.is_https), ""),
            now=settings.clock(),
            via=oidc.issuer,
        )
        response = RedirectResponse(safe_next(unquote(following)), 303)
        set_session(response, session, settings)
        return response

    async def answer(request: Request) -> Response:
        back = request.url.path != PATH
        try:
            guard.check_host(request, settings.url)
            response = await run_in_threadpool(come_back if back else begin, request)
        except Exception as error:
            response = failure_page(error, None)
        if back:
            response.delete_cookie(COOKIE, path=PATH)
        return response

    return [Route(PATH, answer), Route(f"{PATH}/back", answer)]
