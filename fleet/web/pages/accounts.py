"""Accounts, for who administers them; and one's own: password, API tokens, sessions."""

from __future__ import annotations

import re

from contract.errors import RequestInvalid
from fleet import administration
from fleet.access.passwords import verify_password
from fleet.access.roles import PERMITS, Permission, Role, read_roles
from fleet.rollout.durations import parse_duration
from fleet.store import accounts
from fleet.web.pages.page import Moved, Page, Shown, View
from fleet.web.sign_in import HASHING, begin_session, sign_out

_LABEL = re.compile(r"[^\x00-\x1f]{1,64}")


def _list(view: View, *, fault: str = "", made: str = "") -> Shown:
    with view.settings.database.read() as connection:
        found = accounts.every(connection)
        held = accounts.tokens(connection)
    return Shown(
        "accounts.html",
        {
            "accounts": found,
            "tokens": held,
            "roles": {str(role): sorted(str(each) for each in PERMITS[role]) for role in Role},
            "fault": fault,
            "given": {"name": view.form.get("name", ""), "roles": view.lists.get("roles", ())},
            "made": made,
        },
    )


def _list_failed(view: View, error: RequestInvalid) -> Shown:
    return _list(view, fault=error.message)


def _create(view: View) -> Moved:
    roles = read_roles(view.lists.get("roles", ()))
    with HASHING:
        hashed = administration.hashed(view.form.get("password", ""), view.form.get("name", ""))
    with view.settings.database.write() as connection:
        administration.create(
            connection, view.form.get("name", "").strip(), roles, view.who.actor, view.now, password=hashed
        )
    return Moved("/accounts?done=created")


def _change(view: View) -> Moved:
    name, what = view.path["name"], view.form.get("what", "")
    hashed = None
    if what == "password":
        with HASHING:
            hashed = administration.hashed(view.form.get("password", ""), name)
    with view.settings.database.write() as connection:
        if what == "roles":
            administration.set_roles(
                connection, name, read_roles(view.lists.get("roles", ())), view.who.actor, view.now
            )
        elif what in ("disable", "enable"):
            administration.set_disabled(connection, name, what == "disable", view.who.actor, view.now)
        elif what == "password" and hashed is not None:
            administration.set_password(connection, name, hashed, view.who.actor, view.now)
        else:
            raise RequestInvalid("the form does not say what is changed", field="what")
    return Moved("/accounts?done=account")


def _self(view: View, *, fault: str = "", token: str = "") -> Shown:
    with view.settings.database.read() as connection:
        held = accounts.tokens(connection, view.who.name)
    permits = sorted(str(each) for each in view.who.account.permissions)
    return Shown("self.html", {"tokens": held, "permits": permits, "fault": fault, "token": token})


def _self_failed(view: View, error: RequestInvalid) -> Shown:
    return _self(view, fault=error.message)


def _password(view: View) -> Moved:
    name = view.who.name
    with view.settings.database.read() as connection:
        stored = accounts.password_of(connection, name)
    with HASHING:
        if not verify_password(view.form.get("current", ""), stored):
            raise RequestInvalid("the current password is wrong", code=400, field="current")
        hashed = administration.hashed(view.form.get("password", ""), name)
    with view.settings.database.write() as connection:
        administration.set_password(connection, name, hashed, view.who.actor, view.now)
    secret = begin_session(view.settings.database, name, address=view.address, previous="", now=view.now)
    return Moved("/self?done=password", secret)


def _token(view: View) -> Shown:
    label = view.form.get("label", "").strip()
    if _LABEL.fullmatch(label) is None:
        raise RequestInvalid("say in 1 to 64 characters what the token is for", field="label")
    try:
        lasts = parse_duration(view.form.get("lasts", "") or "90d")
    except ValueError as error:
        raise RequestInvalid(f"how long: {error}", field="lasts") from error
    with view.settings.database.write() as connection:
        token = administration.create_token(
            connection, view.who.name, label, view.who.actor, view.now, expires=view.now + lasts
        )
    return _self(view, token=token)


def _revoke(view: View) -> Moved:
    # Whoever administers accounts takes away those of others, too.
    owner = None if view.who.may(Permission.ADMINISTER) else view.who.name
    with view.settings.database.write() as connection:
        administration.revoke_token(connection, view.path["token"], view.who.actor, view.now, owner=owner)
    back = "/accounts" if view.form.get("back") == "accounts" else "/self"
    return Moved(f"{back}?done=revoked")


def _sign_out(view: View) -> Moved:
    everywhere = bool(view.form.get("everywhere"))
    sign_out(view.settings.database, view.who.name, view.who.session, everywhere=everywhere, now=view.now)
    return Moved("/sign-in?done=signed-out", "")


_ADMIN = Permission.ADMINISTER

PAGES = (
    Page(method="GET", path="/accounts", run=_list, permission=_ADMIN),
    Page(method="POST", path="/accounts", run=_create, permission=_ADMIN, failed=_list_failed),
    Page(method="POST", path="/accounts/{name}", run=_change, permission=_ADMIN, failed=_list_failed),
    Page(method="GET", path="/self", run=_self),
    Page(method="POST", path="/self/password", run=_password, failed=_self_failed),
    Page(method="POST", path="/self/tokens", run=_token, failed=_self_failed),
    Page(method="POST", path="/tokens/{token:int}/revoke", run=_revoke, failed=_self_failed),
    Page(method="POST", path="/sign-out", run=_sign_out),
)
