"""The sign-in page."""

from __future__ import annotations

from contract.errors import RequestInvalid
from fleet.access.throttle import Throttle
from fleet.store import accounts
from fleet.web.identity import cookie_name
from fleet.web.pages.page import Moved, Page, Shown, View, safe_next
from fleet.web.sign_in import sign_in


def make_pages(throttle: Throttle) -> tuple[Page, ...]:
    """They share one ``throttle``."""

    def show(view: View, *, fault: str = "") -> Shown | Moved:
        following = safe_next((view.form or view.query).get("next", ""))
        if view.identity is not None and not fault:
            return Moved(following)
        with view.settings.database.read() as connection:
            count = accounts.count(connection)
        oidc = view.settings.oidc
        values = {
            "fault": fault,
            "next": following,
            "name": view.form.get("name", ""),
            "any_account": count > 0 or oidc is not None,
            "provider": "" if oidc is None else oidc.title,
        }
        return Shown("sign_in.html", values)

    def failed(view: View, error: RequestInvalid) -> Shown:
        shown = show(view, fault=error.message)
        assert isinstance(shown, Shown)
        return shown

    def begin(view: View) -> Moved:
        settings = view.settings
        previous = view.cookies.get(cookie_name(settings.is_https), "")
        secret = sign_in(
            settings.database,
            throttle,
            view.form.get("name", "").strip(),
            view.form.get("password", ""),
            address=view.address,
            previous=previous,
            now=view.now,
        )
        return Moved(safe_next(view.form.get("next", "")), secret)

    return (
        Page(method="GET", path="/sign-in", run=show, permission=None),
        Page(method="POST", path="/sign-in", run=begin, permission=None, failed=failed),
    )
