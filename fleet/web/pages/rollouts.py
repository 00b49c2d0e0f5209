"""Rollouts: the list, one with its waves and gates, what people do to it, and beginning one."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from contract.errors import RequestInvalid
from fleet import operations
from fleet.access.roles import Permission
from fleet.describe import describe_plan, describe_rollout
from fleet.operations import STEERING, Steering
from fleet.rollout.facts import Facts
from fleet.rollout.model import CONTROL_WAVE, Rollout
from fleet.rollout.plan import describe
from fleet.rollout.spec import Spec, read_spec
from fleet.rollout.states import ENDED, RolloutState, TargetState, WaveState
from fleet.store import canary, catalogue, devices, rollouts
from fleet.store.database import Transaction
from fleet.web.pages.page import Moved, Page, Shown, View

PAGE_ROLLOUTS = 25
PAGE_TARGETS = 50

_S = RolloutState

ALLOWED: dict[Steering, frozenset[RolloutState]] = {
    "pause": frozenset({_S.RUNNING}),
    "resume": frozenset({_S.PAUSED}),
    "halt": frozenset({_S.RUNNING, _S.PAUSED}),
    "retry": frozenset({_S.RUNNING, _S.PAUSED, _S.HALTED}),
    "abort": frozenset(RolloutState) - ENDED,
    "approve": frozenset({_S.WAITING_APPROVAL}),
}
"""When which button stands there; whether it is possible is decided where it is done."""

_FAILED = (TargetState.FAILED, TargetState.TIMED_OUT)


def _list(view: View) -> Shown:
    before = view.query.get("before", "")
    number = int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None
    with view.settings.database.read() as connection:
        found = rollouts.overviews(connection, before=number, limit=PAGE_ROLLOUTS + 1)
    documents = [describe_rollout(each.rollout, each.counts) for each in found[:PAGE_ROLLOUTS]]
    more = documents[-1].rollout if len(found) > PAGE_ROLLOUTS else None
    return Shown("rollouts.html", {"rollouts": documents, "next": more, "first": number is None})


def _show(view: View, *, fault: str = "") -> Shown:
    number = view.path["rollout"]
    state = view.query.get("state", "")
    offset = view.query.get("offset", "0")
    skip = int(offset) if offset.isascii() and offset.isdigit() and len(offset) < 8 else 0
    with view.settings.database.read() as connection:
        overview = rollouts.overview(connection, number)
        judged = _judged(connection, overview.rollout)
        facts = None
        if judged.targets:
            scores = canary.scores(connection, number) if judged.spec.canary is not None else {}
            facts = Facts(devices.facts(connection, view.now, judged.targets, look_back=False), scores=scores)
        chosen = None if state not in set(TargetState) else [state]
        targets = rollouts.targets(connection, number, states=chosen, limit=PAGE_TARGETS + 1, offset=skip)
    found = overview.rollout
    document = describe_rollout(judged, overview.counts, facts or Facts())
    counts = {each: sum(wave[each] for wave in overview.counts.values()) for each in TargetState}
    return Shown(
        "rollout.html",
        {
            "rollout": document,
            "spec": found.spec,
            "total": sum(document.devices.values()),
            "left_out": sum(overview.counts.get(CONTROL_WAVE, {}).values()),
            "actions": [action for action in STEERING if _offered(action, found, counts)],
            "inconclusive": any(wave.state is WaveState.INCONCLUSIVE for wave in found.waves),
            "is_author": view.identity is not None and view.identity.name == found.created_by,
            "targets": targets[:PAGE_TARGETS],
            "state": state if chosen else "",
            "states": {str(each): count for each, count in counts.items() if count},
            "offset": skip,
            "more": skip + PAGE_TARGETS if len(targets) > PAGE_TARGETS else None,
            "less": max(0, skip - PAGE_TARGETS) if skip else None,
            "fault": fault,
            "live": found.state not in ENDED,
        },
    )


def _offered(action: Steering, found: Rollout, counts: dict[TargetState, int]) -> bool:
    if action == "retry" and not any(counts[each] for each in _FAILED):
        return False
    return found.state in ALLOWED[action]


def _judged(connection: Transaction, found: Rollout) -> Rollout:
    """The rollout with those of its targets alone by which a wave is judged now."""
    waves = [
        wave.number for wave in found.waves if wave.state in (WaveState.OPEN, WaveState.BAKING, WaveState.INCONCLUSIVE)
    ]
    targets = rollouts.targets(connection, found.id, states=[TargetState.ACTIVE], waves=waves) if waves else []
    control = rollouts.targets(connection, found.id, waves=[CONTROL_WAVE]) if targets else []
    return structs.replace(found, targets={each.device: each for each in (*targets, *control)})


def _failed(view: View, error: RequestInvalid) -> Shown:
    return _show(view, fault=error.message)


def _steer(action: Steering) -> Page:
    def run(view: View) -> Moved:
        number = view.path["rollout"]
        accept = view.form.get("accept", "").strip() or None if action == "resume" else None
        expected = view.form.get("state", "")

        def check(found: Rollout) -> None:
            if expected and found.state != expected:
                raise RequestInvalid(
                    f"rollout {number} was {expected} when you looked, and is {found.state} now: look again",
                    code=409,
                    kind="conflict",
                )

        with view.settings.database.write() as connection:
            operations.steer(connection, number, action, view.who.actor, view.now, accept=accept, check=check)
        return Moved(f"/rollouts/{number}?done={action}")

    permission = Permission.APPROVE if action == "approve" else Permission.OPERATE
    return Page(
        method="POST", path=f"/rollouts/{{rollout:int}}/{action}", run=run, permission=permission, failed=_failed
    )


def _form_values(view: View) -> dict[str, str]:
    given = view.form or view.query
    names = ("bundle", "where", "waves", "bake", "holdout", "rollback", "approval")
    return {name: given.get(name, "").strip() for name in names}


def _read(values: dict[str, str]) -> Spec:
    document: dict[str, Any] = {"bundle": values["bundle"], "where": values["where"]}
    for name in ("bake", "holdout", "rollback"):
        if values[name]:
            document[name] = values[name]
    if values["waves"]:
        document["waves"] = [part.strip() for part in values["waves"].split(",")]
    if values["approval"]:
        document["approval"] = True
    return read_spec(document)


def _new(view: View, *, fault: str = "") -> Shown:
    values = _form_values(view)
    plan = None
    spec = None
    if values["bundle"] and not fault:
        spec = _read(values)
        listed = view.settings.look_up(spec)
        with view.settings.database.read() as connection:
            planned = operations.plan(connection, spec, listed, by=view.who.name, now=view.now)
        waves = describe(planned.rollout, planned.devices, None if listed is None else listed.bytes)
        plan = describe_plan(planned.rollout, waves, looked_up=listed is not None, started=False)
    with view.settings.database.read() as connection:
        known = {each.reference for each in catalogue.entries(connection) if not each.revoked}
        known |= set(devices.running(connection))
    return Shown(
        "rollout_new.html",
        {"values": values, "plan": plan, "spec": spec, "fault": fault, "bundles": sorted(known)[:500]},
    )


def _new_failed(view: View, error: RequestInvalid) -> Shown:
    told = [f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in error.details[1:]]
    return _new(view, fault="; ".join([error.message, *told]))


def _start(view: View) -> Moved:
    spec = _read(_form_values(view))
    listed = view.settings.look_up(spec)
    with view.settings.database.write() as connection:
        made = operations.start(connection, spec, listed, view.who.actor, view.now).rollout
    return Moved(f"/rollouts/{made.id}?done=start")


PAGES = (
    Page(method="GET", path="/rollouts", run=_list),
    Page(method="GET", path="/rollouts/new", run=_new, permission=Permission.OPERATE, failed=_new_failed),
    Page(method="POST", path="/rollouts/new", run=_start, permission=Permission.OPERATE, failed=_new_failed),
    Page(method="GET", path="/rollouts/{rollout:int}", run=_show),
    *(_steer(action) for action in STEERING),
)
