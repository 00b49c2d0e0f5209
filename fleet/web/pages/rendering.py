"""Templates, and how things are written in them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

from contract.errors import printable
from fleet.rollout.durations import describe_duration
from fleet.web.assets import asset_url

STATES = {
    "ready": "good", "online": "good", "active": "good", "baked": "good", "done": "good", "passed": "good",
    "running": "busy", "open": "busy", "baking": "busy", "asked": "busy", "installing": "busy", "probation": "busy",
    "rolling_back": "busy", "inconclusive": "warn", "paused": "warn", "waiting_approval": "warn", "deferred": "warn",
    "timed_out": "bad", "failed": "bad", "halted": "bad", "aborted": "bad", "revoked": "bad", "rolled_back": "bad",
    "refused": "bad",
}  # fmt: skip
"""The colour of a state; everything else is calm. The word always stands beside it."""


def _badge(state: str, tone: str | None = None) -> Markup:
    kind = tone or STATES.get(state, "calm")
    return Markup('<span class="badge {}">{}</span>').format(kind, printable(state).replace("_", " "))


def _time(seconds: float | None) -> Markup | str:
    if seconds is None:
        return "–"
    at = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), at.strftime("%Y-%m-%d %H:%M:%S"))


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _link(path: str, query: Mapping[str, Any]) -> str:
    found = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(found)}" if found else path


@cache
def environment() -> jinja2.Environment:
    """Everything is escaped; what is not defined is a fault."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("fleet.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "time": _time, "size": _size, "number": _number, "badge": _badge, "printable": printable,
        "duration": describe_duration,
    }  # fmt: skip
    made.globals |= {"asset": asset_url, "link": _link}
    return made


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page as text."""
    return environment().get_template(template).render(values)
