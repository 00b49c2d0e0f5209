"""What a page is, and how it is served: who looks, may they, is the form ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, quote

from msgspec import Struct
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from contract.errors import RequestInvalid
from fleet.access.roles import Permission
from fleet.access.secrets import make_secret
from fleet.web import guard
from fleet.web.failures import describe_error, headers_of, status_of
from fleet.web.identity import Identity, cookie_name, identify
from fleet.web.pages.rendering import render
from fleet.web.settings import Settings

MAX_FIELDS = 200
"""Of a form."""

FORM_COOKIE = "edge-fleet-form"
"""Before anybody has signed in: what the sign-in form must bring along."""

DONE = {
    "pause": "The rollout is paused.",
    "resume": "The rollout goes on.",
    "halt": "The rollout is halted.",
    "abort": "The rollout is aborted.",
    "retry": "What failed or timed out is asked again.",
    "approve": "The rollout is approved.",
    "start": "The rollout is begun.",
    "device": "The device is changed.",
    "account": "The account is changed.",
    "created": "The account is made.",
    "password": "The password is changed; all other sessions have ended.",
    "revoked": "The token is revoked.",
    "signed-out": "You are signed out.",
}
"""What is told after a form, by a word in the address; nothing of the address itself is shown."""


class View(Struct, frozen=True, kw_only=True):
    """One request for a page. ``identity`` is None on pages that are for everybody."""

    settings: Settings
    identity: Identity | None
    path: Mapping[str, Any]
    query: Mapping[str, str]
    form: Mapping[str, str]
    lists: Mapping[str, tuple[str, ...]]
    address: str
    cookies: Mapping[str, str]
    now: float

    @property
    def who(self) -> Identity:
        assert self.identity is not None
        return self.identity


class Shown(Struct, frozen=True):
    """A page from a template."""

    template: str
    values: dict[str, Any]
    status: int = 200
    headers: dict[str, str] = {}


class Moved(Struct, frozen=True):
    """See there. ``session``: begin ("" ends) it."""

    to: str
    session: str | None = None


class Page(Struct, frozen=True, kw_only=True):
    """``permission`` None: for everybody. ``failed`` shows a refused form again, with what was written in it."""

    method: Literal["GET", "POST"]
    path: str
    run: Callable[[View], Shown | Moved]
    permission: Permission | None = Permission.READ
    failed: Callable[[View, RequestInvalid], Shown] | None = None


def make_route(page: Page, settings: Settings) -> Route:
    """Where ``page`` is asked for."""

    async def endpoint(request: Request) -> Response:
        try:
            guard.check_host(request, settings.url)
            body = await guard.read_body(request)
        except RequestInvalid as error:
            return failure_page(error, None)
        return await run_in_threadpool(_answer, page, settings, request, body)

    return Route(page.path, endpoint, methods=[page.method])


def read_view(request: Request, settings: Settings, body: bytes, identity: Identity | None) -> View:
    """What the request says.

    Raises:
        RequestInvalid: its form cannot be read.
    """
    pairs: list[tuple[str, str]] = []
    if body:
        try:
            pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
        except ValueError as error:
            raise RequestInvalid("the form cannot be read") from error
    lists: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        lists[name] = (*lists.get(name, ()), value)
    return View(
        settings=settings,
        identity=identity,
        path=dict(request.path_params),
        query=dict(request.query_params),
        form={name: values[-1] for name, values in lists.items()},
        lists=lists,
        address=guard.client_address(request, settings.proxies),
        cookies=request.cookies,
        now=settings.clock(),
    )


def identity_of(request: Request, settings: Settings) -> Identity | None:
    """Whose session it is; a token opens no pages."""
    found = identify(settings.database, {}, request.cookies, is_https=settings.is_https, now=settings.clock())
    return found if found is not None and found.session else None


def _answer(page: Page, settings: Settings, request: Request, body: bytes) -> Response:
    identity = None
    try:
        identity = identity_of(request, settings)
        if page.permission is not None and identity is None:
            return to_sign_in(request)
        view = read_view(request, settings, body, identity)
        if page.method == "POST":
            check_form(request, view)
        if page.permission is not None:
            view.who.require(page.permission)
        try:
            found = page.run(view)
        except RequestInvalid as error:
            if page.failed is None or error.code in (403, 404):
                raise
            shown = page.failed(view, error)
            found = Shown(shown.template, shown.values, status_of(error), headers_of(error))
        return respond(found, view)
    except Exception as error:
        return failure_page(error, identity)


def check_form(request: Request, view: View) -> None:
    """See that a form is ours.

    Raises:
        RequestInvalid: it is not.
    """
    guard.check_origin(request, view.settings.url)
    expected = view.cookies.get(FORM_COOKIE, "") if view.identity is None else view.identity.csrf
    guard.check_csrf(expected, {}, view.form)


def to_sign_in(request: Request) -> Response:
    """Where who looks has to say who they are; they come back."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = "/sign-in" if here == "/" or request.method != "GET" else f"/sign-in?next={quote(here, safe='')}"
    if request.headers.get("hx-request"):
        # A part of a page must not become the sign-in form.
        return Response(status_code=200, headers={"hx-redirect": target})
    return RedirectResponse(target, 303)


def respond(found: Shown | Moved, view: View) -> Response:
    """As HTTP."""
    settings = view.settings
    if isinstance(found, Moved):
        response: Response = RedirectResponse(found.to, 303)
        if found.session is not None:
            set_session(response, found.session, settings)
        return response
    values = found.values | common(view.identity, view.query)
    form = ""
    if view.identity is None:
        form = view.cookies.get(FORM_COOKIE, "") or make_secret()
        values["csrf"] = form
    response = HTMLResponse(render(found.template, values), found.status, found.headers)
    if form and form != view.cookies.get(FORM_COOKIE):
        response.set_cookie(
            FORM_COOKIE, form, httponly=True, samesite="lax", secure=settings.is_https, path="/", max_age=86400
        )
    return response


def set_session(response: Response, secret: str, settings: Settings) -> None:
    """Let the browser keep the session, or forget it."""
    name = cookie_name(settings.is_https)
    if secret:
        response.set_cookie(name, secret, httponly=True, samesite="lax", secure=settings.is_https, path="/")
    else:
        response.delete_cookie(name, httponly=True, samesite="lax", secure=settings.is_https, path="/")


def common(identity: Identity | None, query: Mapping[str, str]) -> dict[str, Any]:
    """What every page shows."""
    return {
        "identity": identity,
        "may": (lambda name: False) if identity is None else (lambda name: identity.may(Permission(name))),
        "csrf": "" if identity is None else identity.csrf,
        "done": DONE.get(query.get("done", ""), ""),
    }


def failure_page(error: Exception, identity: Identity | None) -> Response:
    """``error`` as a person reads it."""
    described = describe_error(error).error
    values = {"error": described, "title": _TITLES.get(described.code, "That did not work")} | common(identity, {})
    return HTMLResponse(render("failure.html", values), status_of(error), headers_of(error))


_TITLES = {
    403: "Not permitted",
    404: "Not found",
    409: "Not possible now",
    421: "Another name",
    503: "Something is away",
}


def safe_next(text: str) -> str:
    """A path of ours to go to after signing in; nothing else."""
    plain = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and "\\" not in text
    return text if plain and len(text) <= 2000 else "/"
