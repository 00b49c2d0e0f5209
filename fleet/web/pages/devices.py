"""Devices: the list with its filter, and one of them with its plots."""

from __future__ import annotations

from typing import Any

from contract.errors import RequestInvalid
from fleet import operations
from fleet.access.roles import Permission
from fleet.describe import describe_device, describe_device_wholly, describe_points
from fleet.rollout.selector import FIELDS, parse_selector
from fleet.store import counters, devices, rollouts
from fleet.web.pages.page import Moved, Page, Shown, View
from fleet.web.pages.plot import draw

PAGE_DEVICES = 50
HOURS = 3
"""That are plotted."""


def _list(view: View) -> Shown:
    where = view.query.get("where", "").strip()
    after = view.query.get("after", "")
    selector = parse_selector(where or "*")
    with view.settings.database.read() as connection:
        every = devices.traits(connection)
        matching = selector.select(every)
        rest = [each.device for each in matching if each.device > after]
        rows = devices.named(connection, rest[:PAGE_DEVICES])
    return Shown(
        "devices.html",
        {
            "where": where,
            "after": after,
            "fault": "",
            "devices": [describe_device(row) for row in rows],
            "matching": len(matching),
            "online": sum(each.online for each in matching),
            "known": len(every),
            "next": rest[PAGE_DEVICES - 1] if len(rest) > PAGE_DEVICES else None,
            "fields": FIELDS,
            "now": view.now,
        },
    )


def _list_failed(view: View, error: RequestInvalid) -> Shown:
    values = {
        "where": view.query.get("where", ""), "after": "", "fault": error.message, "devices": [], "matching": 0,
        "online": 0, "known": None, "next": None, "fields": FIELDS, "now": view.now,
    }  # fmt: skip
    return Shown("devices.html", values)


def _show(view: View, *, fault: str = "", labels: str | None = None) -> Shown:
    name = view.path["device"]
    since = view.now - HOURS * 3600
    with view.settings.database.read() as connection:
        row = devices.find(connection, name)
        attempts, events = rollouts.attempts(connection, name), devices.events(connection, name)
        points = describe_points(counters.series(connection, name, since))
        latest = counters.latest(connection, name)
    found = describe_device_wholly(row, attempts, events)
    span = [(since, None), *((point.at, point) for point in points), (view.now, None)]

    def values(field: str, factor: float = 1.0) -> list[tuple[float, float | None]]:
        read = [(at, None if point is None else getattr(point, field)) for at, point in span]
        return [(at, None if value is None else value * factor) for at, value in read]

    return Shown(
        "device.html",
        {
            "device": found,
            "memory": None if latest is None else latest[2],
            "sampled_at": None if latest is None else latest[0],
            "plots": [
                draw("tokens_per_second", "Tokens a second", "", values("tokens_per_second")),
                draw("requests_per_minute", "Requests a minute", "", values("requests_per_minute")),
                draw("first_token_p95", "95 % have their first token within", "s", values("first_token_p95")),
                draw("error_rate", "Errors of all requests", "%", values("error_rate", 100.0)),
            ],
            "points": points[-15:][::-1],
            "hours": HOURS,
            "since": int(since),
            "labels": "\n".join(f"{key}={value}" for key, value in sorted(found.labels.items()))
            if labels is None
            else labels,
            "fault": fault,
        },
    )


def _show_failed(view: View, error: RequestInvalid) -> Shown:
    return _show(view, fault=error.message, labels=view.form.get("labels", ""))


def _change(view: View) -> Moved:
    name, what = view.path["device"], view.form.get("what", "")
    changes: dict[str, Any]
    with view.settings.database.write() as connection:
        if what == "labels":
            before = devices.find(connection, name).traits.labels
            lines = [line.strip() for line in view.form.get("labels", "").splitlines() if line.strip()]
            wanted = dict(operations.check_label(line).split("=", 1) for line in lines)
            # What was taken out of the text is taken away.
            changed = {key: value for key, value in wanted.items() if before.get(key) != value}
            changes = {"labels": changed | dict.fromkeys(set(before) - set(wanted), "")}
        elif what in ("pin", "unpin"):
            changes = {"pinned": what == "pin"}
        elif what == "rely":
            changes = {"clear_trouble": True}
        else:
            raise RequestInvalid("the form does not say what is changed", field="what")
        operations.change_device(connection, name, view.who.actor, view.now, **changes)
    return Moved(f"/devices/{name}?done=device")


PAGES = (
    Page(method="GET", path="/devices", run=_list, failed=_list_failed),
    Page(method="GET", path="/devices/{device}", run=_show),
    Page(
        method="POST",
        path="/devices/{device}",
        run=_change,
        permission=Permission.OPERATE,
        failed=_show_failed,
    ),
)
