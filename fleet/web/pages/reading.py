"""Pages to read: the start, bundles, the audit log."""

from __future__ import annotations

from contract.errors import StoreBroken
from fleet.describe import describe_bundles, describe_rollout
from fleet.rollout.states import ENDED
from fleet.store import audit, catalogue, devices, rollouts
from fleet.web.pages.page import Page, Shown, View

PAGE_LINES = 50
START_LINES = 8


def _start(view: View) -> Shown:
    with view.settings.database.read() as connection:
        counts = devices.count_states(connection)
        running = devices.running(connection)
        found = rollouts.overviews(connection, limit=20)
        lines = audit.entries(connection, limit=START_LINES)[::-1]
    documents = [describe_rollout(each.rollout, each.counts) for each in found]
    open_ones = [each for each in documents if each.state not in set(ENDED)]
    return Shown(
        "start.html",
        {
            "counts": counts,
            "running": sorted(running.items(), key=lambda each: (-each[1], each[0]))[:8],
            "rollouts": open_ones or documents[:3],
            "has_open": bool(open_ones),
            "lines": lines,
        },
    )


def _bundles(view: View) -> Shown:
    with view.settings.database.read() as connection:
        entries = catalogue.entries(connection)
        configured = view.settings.depot is not None or bool(entries)
        found = describe_bundles(entries, devices.running(connection), configured=configured)
    read_at = max((each.read_at for each in found if each.read_at is not None), default=None)
    return Shown("bundles.html", {"bundles": found, "configured": configured, "read_at": read_at})


def _audit(view: View) -> Shown:
    subject, actor = view.query.get("subject", "").strip(), view.query.get("actor", "").strip()
    before = view.query.get("before", "")
    number = int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None
    verified: int | str | None = None
    with view.settings.database.read() as connection:
        found = audit.entries(
            connection, limit=PAGE_LINES + 1, subject=subject or None, actor=actor or None, before=number
        )[::-1]
        if view.query.get("verify"):
            try:
                verified = audit.verify(connection)
            except StoreBroken as broken:
                verified = broken.message
    lines = found[:PAGE_LINES]
    return Shown(
        "audit.html",
        {
            "lines": lines,
            "subject": subject,
            "actor": actor,
            "next": lines[-1].id if len(found) > PAGE_LINES else None,
            "first": number is None,
            "verified": verified,
        },
    )


PAGES = (
    Page(method="GET", path="/", run=_start),
    Page(method="GET", path="/bundles", run=_bundles),
    Page(method="GET", path="/audit", run=_audit),
)
