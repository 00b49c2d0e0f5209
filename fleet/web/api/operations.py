"""Every operation of the API."""

from __future__ import annotations

from typing import Any

from fleet import operations
from fleet.access.roles import Permission
from fleet.describe import (
    count_targets,
    describe_bundles,
    describe_device,
    describe_device_wholly,
    describe_plan,
    describe_points,
    describe_rollout,
    describe_rollout_wholly,
)
from fleet.documents import (
    AuditDocument,
    AuditPageDocument,
    BundlesDocument,
    DeviceChange,
    DeviceDetailDocument,
    DevicesDocument,
    PlanDocument,
    Resume,
    RolloutDetailDocument,
    RolloutDocument,
    RolloutsDocument,
    SelfDocument,
    SeriesDocument,
)
from fleet.operations import Planned, Steering
from fleet.rollout.facts import Facts
from fleet.rollout.model import Rollout
from fleet.rollout.plan import describe
from fleet.rollout.selector import parse_selector
from fleet.rollout.spec import SpecDocument, read_spec
from fleet.rollout.states import TargetState
from fleet.store import audit, canary, catalogue, counters, devices, rollouts
from fleet.store.database import Transaction
from fleet.store.devices import DeviceRow
from fleet.web.api.operation import Call, Operation, Parameter, Reply, etag_of

DAY = 86400.0
MAX_PAGE = 500

_DEVICE = Parameter("device", "name of the device")
_ROLLOUT = Parameter("rollout", "number of the rollout", "integer")
_LIMIT = Parameter("limit", "of one page", "integer", 100, 1, MAX_PAGE)


def rollout_etag(found: Rollout) -> str:
    """Of what people steer: the states of the rollout and its waves, not of every device."""
    return etag_of(found.id, found.state, found.reason, found.approved_by, [[w.number, w.state] for w in found.waves])


def device_etag(row: DeviceRow) -> str:
    """Of what people say of a device."""
    return etag_of(row.traits.device, dict(row.traits.labels), row.traits.pinned, row.reliable)


def _list_devices(connection: Transaction, call: Call) -> Reply:
    selector = parse_selector(call.query["where"])
    every = devices.traits(connection)
    matching = selector.select(every)
    after, limit = call.query["after"], call.query["limit"]
    rest = [each.device for each in matching if each.device > after]
    rows = devices.named(connection, rest[:limit])
    return Reply(
        DevicesDocument(
            [describe_device(row) for row in rows],
            len(matching),
            sum(each.online for each in matching),
            len(every),
            rest[limit - 1] if len(rest) > limit else None,
        )
    )


def _show_device(connection: Transaction, call: Call) -> Reply:
    return _device(connection, call.path["device"])


def _device(connection: Transaction, name: str) -> Reply:
    row = devices.find(connection, name)
    attempts, events = rollouts.attempts(connection, name), devices.events(connection, name)
    return Reply(describe_device_wholly(row, attempts, events), device_etag(row))


def _change_device(connection: Transaction, call: Call) -> Reply:
    name, change = call.path["device"], call.body
    call.check_match(device_etag(devices.find(connection, name)))
    operations.change_device(
        connection, name, call.identity.actor, call.now,
        labels=change.labels, pinned=change.pinned, clear_trouble=change.clear_trouble,
    )  # fmt: skip
    return _device(connection, name)


def _series(connection: Transaction, call: Call) -> Reply:
    name = call.path["device"]
    devices.find(connection, name)
    since = max(call.query["since"], int(call.now - 2 * DAY))
    return Reply(SeriesDocument(name, describe_points(counters.series(connection, name, since))))


def _list_bundles(connection: Transaction, call: Call) -> Reply:
    entries = catalogue.entries(connection)
    configured = call.settings.depot is not None or bool(entries)
    found = describe_bundles(entries, devices.running(connection), configured=configured)
    return Reply(BundlesDocument(found))


def _list_rollouts(connection: Transaction, call: Call) -> Reply:
    limit = call.query["limit"]
    found = rollouts.overviews(connection, before=call.query["before"], limit=limit + 1)
    documents = [describe_rollout(each.rollout, each.counts) for each in found[:limit]]
    return Reply(RolloutsDocument(documents, found[limit - 1].rollout.id if len(found) > limit else None))


def _show_rollout(connection: Transaction, call: Call) -> Reply:
    return _rollout(connection, rollouts.load(connection, call.path["rollout"]), call.now)


def _rollout(connection: Transaction, found: Rollout, now: float) -> Reply:
    judged = [each.device for each in found.targets.values() if each.state is TargetState.ACTIVE]
    facts = _facts_of(connection, found, judged, now) if judged else Facts()
    return Reply(describe_rollout_wholly(found, facts), rollout_etag(found))


def _facts_of(connection: Transaction, found: Rollout, judged: list[str], now: float) -> Facts:
    scores = canary.scores(connection, found.id) if found.spec.canary is not None else {}
    return Facts(devices.facts(connection, now, judged, look_back=False), scores=scores)


def _look_up(call: Call) -> Any:
    spec = read_spec(call.body)
    return spec, call.settings.look_up(spec)


def _plan(call: Call, planned: Planned, *, started: bool) -> PlanDocument:
    listed = call.prepared[1]
    waves = describe(planned.rollout, planned.devices, None if listed is None else listed.bytes)
    return describe_plan(planned.rollout, waves, looked_up=listed is not None, started=started)


def _plan_rollout(connection: Transaction, call: Call) -> Reply:
    spec, listed = call.prepared
    planned = operations.plan(connection, spec, listed, by=call.identity.name, now=call.now)
    return Reply(_plan(call, planned, started=False))


def _start_rollout(connection: Transaction, call: Call) -> Reply:
    spec, listed = call.prepared
    planned = operations.start(connection, spec, listed, call.identity.actor, call.now)
    found = planned.rollout
    return Reply(_plan(call, planned, started=True), rollout_etag(found), f"/api/v1/rollouts/{found.id}")


def _steer(action: Steering, permission: Permission, summary: str, *, body: type[Any] | None = None) -> Operation:
    def run(connection: Transaction, call: Call) -> Reply:
        accept = call.body.accept if isinstance(call.body, Resume) else None
        after = operations.steer(
            connection, call.path["rollout"], action, call.identity.actor, call.now,
            accept=accept, check=lambda found: call.check_match(rollout_etag(found)),
        )  # fmt: skip
        return Reply(describe_rollout(after, count_targets(after)), rollout_etag(after))

    return Operation(
        method="POST",
        path=f"/api/v1/rollouts/{{rollout}}/{action}",
        name=f"{action}_rollout",
        summary=summary,
        permission=permission,
        parameters=(_ROLLOUT,),
        body=body,
        body_required=False,
        reply=RolloutDocument,
        run=run,
        changes=True,
        matches=True,
    )


def _audit(connection: Transaction, call: Call) -> Reply:
    limit = call.query["limit"]
    found = audit.entries(
        connection,
        limit=limit + 1,
        subject=call.query["subject"],
        actor=call.query["actor"],
        before=call.query["before"],
    )[::-1]
    lines = [AuditDocument(**each._asdict()) for each in found[:limit]]
    return Reply(AuditPageDocument(lines, lines[-1].id if len(found) > limit else None))


def _self(connection: Transaction, call: Call) -> Reply:
    account = call.identity.account
    return Reply(SelfDocument(account.name, list(account.roles), sorted(str(each) for each in account.permissions)))


_P = Permission

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET", path="/api/v1/devices", name="list_devices",
        summary="Devices that were heard, by name",
        permission=_P.READ, reply=DevicesDocument, run=_list_devices,
        query=(
            Parameter("where", "a selection, as for `edge-fleet devices --where`", default="*"),
            Parameter("after", "the name that the page before ended with", default=""),
            _LIMIT,
        ),
    ),
    Operation(
        method="GET", path="/api/v1/devices/{device}", name="show_device",
        summary="One device, what it was asked and what happened there",
        permission=_P.READ, reply=DeviceDetailDocument, run=_show_device, parameters=(_DEVICE,),
    ),
    Operation(
        method="PATCH", path="/api/v1/devices/{device}", name="change_device",
        summary="Label a device, pin it, or rely again on what it says",
        permission=_P.OPERATE, reply=DeviceDetailDocument, run=_change_device, parameters=(_DEVICE,),
        body=DeviceChange, changes=True, matches=True,
    ),
    Operation(
        method="GET", path="/api/v1/devices/{device}/series", name="device_series",
        summary="What a device did by the minute, of the last two days",
        permission=_P.READ, reply=SeriesDocument, run=_series, parameters=(_DEVICE,),
        query=(Parameter("since", "Unix seconds", "integer", 0, 0, 2**53),),
    ),
    Operation(
        method="GET", path="/api/v1/bundles", name="list_bundles",
        summary="Bundles of the repository, and those that run somewhere",
        permission=_P.READ, reply=BundlesDocument, run=_list_bundles,
    ),
    Operation(
        method="GET", path="/api/v1/rollouts", name="list_rollouts",
        summary="Rollouts, the newest first",
        permission=_P.READ, reply=RolloutsDocument, run=_list_rollouts,
        query=(
            Parameter("before", "the number that the page before ended with", "integer", None, 1, 2**53),
            Parameter("limit", "of one page", "integer", 50, 1, MAX_PAGE),
        ),
    ),
    Operation(
        method="POST", path="/api/v1/rollouts", name="start_rollout",
        summary="Begin a rollout, or let it wait for its approval",
        permission=_P.OPERATE, reply=PlanDocument, run=_start_rollout, prepare=_look_up, body=SpecDocument,
        status=201, changes=True,
    ),
    Operation(
        method="POST", path="/api/v1/rollouts/plan", name="plan_rollout",
        summary="What beginning a rollout would do; nothing is changed",
        permission=_P.READ, reply=PlanDocument, run=_plan_rollout, prepare=_look_up, body=SpecDocument,
    ),
    Operation(
        method="GET", path="/api/v1/rollouts/{rollout}", name="show_rollout",
        summary="One rollout with its waves, gates and devices",
        permission=_P.READ, reply=RolloutDetailDocument, run=_show_rollout, parameters=(_ROLLOUT,),
    ),
    _steer("pause", _P.OPERATE, "Send nothing new; what is under way goes on, and can still halt it"),
    _steer("resume", _P.OPERATE, "Go on after a pause", body=Resume),
    _steer("halt", _P.OPERATE, "Stop it as a failed gate would; its `rollback` says what is turned back"),
    _steer("abort", _P.OPERATE, "End it; what is under way, and what was not judged yet, is turned back"),
    _steer("retry", _P.OPERATE, "Ask those again that failed or timed out"),
    _steer("approve", _P.APPROVE, "Let one begin that waits for the approval of another person than its author"),
    Operation(
        method="GET", path="/api/v1/audit", name="list_audit",
        summary="Who did what, the newest first",
        permission=_P.READ, reply=AuditPageDocument, run=_audit,
        query=(
            Parameter("subject", "only about this, such as `rollout 12` or a device"),
            Parameter("actor", "only what this one did"),
            Parameter("before", "the line that the page before ended with", "integer", None, 1, 2**53),
            _LIMIT,
        ),
    ),
    Operation(
        method="GET", path="/api/v1/self", name="show_self",
        summary="Who asks, and what they may do",
        permission=_P.READ, reply=SelfDocument, run=_self,
    ),
)  # fmt: skip


def operation(name: str) -> Operation:
    """By its name."""
    return next(each for each in OPERATIONS if each.name == name)
