"""What a device reports, and what that means for its target."""

from __future__ import annotations

from typing import Any

from contract.windows import next_opening
from fleet.rollout.actions import FreeSlot, MoveTarget, NoteTarget, Turn
from fleet.rollout.facts import DeviceFacts, Report
from fleet.rollout.model import Bundle, Rollout, Target
from fleet.rollout.states import IN_PROGRESS, TargetState, TurnBack

_DOWNLOADED = ("SEAL", "CANARY", "SWITCH", "PROBATION", "COMMIT", "ROLLBACK")
"""Phases in which a device no longer needs its site's line."""

_LATE = ("PROBATION", "COMMIT")

_RANK = {TargetState.ASKED: 0, TargetState.INSTALLING: 1, TargetState.PROBATION: 2, TargetState.ACTIVE: 3}

REPLACED = "replaced"
"""Reason of a target whose wish somebody replaced on the broker."""

REVERTED = "reverted"
"""Reason of a device that left the bundle after it had become active."""

WRONG_BYTES = "digest_mismatch"

CLOCK_NOT_SET = "clock_not_set"
"""What a device says that does not know whether its window is open."""

_WAITS = ("waiting_for_window", "waiting_for_not_before", CLOCK_NOT_SET)
"""What devices wait for before they activate."""


def observe(turn: Turn) -> None:
    """Bring every target that was asked up to date with what its device reports."""
    for target in turn.targets():
        facts = turn.facts.devices.get(target.device)
        if facts is None:
            continue
        if target.turn_back is TurnBack.REQUESTED:
            _observe_turn_back(turn, target, facts)
        elif target.state in IN_PROGRESS:
            _observe_wish(turn, target, facts)
        elif target.state is TargetState.ACTIVE:
            _observe_active(turn, target, facts)
    free_slots(turn)


def runs(active: Bundle | None, wanted: Bundle) -> bool:
    """Whether ``active`` is ``wanted``; of other bytes under the same name it is not."""
    if active is None or active.reference != wanted.reference:
        return False
    return not (active.digest and wanted.digest) or active.digest == wanted.digest


def concerns(report: Report | None, revision: str, bundle: Bundle) -> bool:
    """Whether ``report`` speaks of this wish. A revision of an earlier life of this fleet may have the same name."""
    return report is not None and report.revision == revision and report.followed in ("", bundle.reference)


def activates_from(turn: Turn) -> float:
    """From when on a device that is asked now may activate: its time runs from there."""
    spec, rollout = turn.rollout.spec, turn.rollout
    if not spec.prefetch:
        return turn.now
    started = rollout.created_at if rollout.started_at is None else rollout.started_at
    opens = next_opening(spec.windows, turn.now)
    return turn.now if opens is None else max(turn.now, min(opens, started + spec.expires))


def _observe_waiting(turn: Turn, target: Target, report: Report) -> None:
    """It waits for its window: no failure, and its time runs from the next one on. A clock that is not set is one."""
    changes: dict[str, Any] = {"reason": report.waiting, "message": report.message}
    opens = activates_from(turn)
    if report.waiting != CLOCK_NOT_SET and opens > turn.now:
        changes["deadline"] = max(target.deadline or 0.0, opens + turn.rollout.spec.deadline)
    if any(getattr(target, name) != value for name, value in changes.items()):
        turn.do(NoteTarget(target.device, changes))


def _observe_wish(turn: Turn, target: Target, facts: DeviceFacts) -> None:
    rollout, report = turn.rollout, facts.report
    revision = rollout.revision(target)
    if facts.desired == revision and not target.seen:
        turn.do(NoteTarget(target.device, {"seen": True}))
        target = turn.rollout.targets[target.device]
    if target.seen and facts.desired is not None and facts.desired != revision:
        by = f"by revision {facts.desired}" if facts.desired else "with nothing"
        turn.do(MoveTarget(target.device, TargetState.SUPERSEDED, REPLACED, f"somebody replaced the wish {by}"))
        return
    if not concerns(report, revision, rollout.bundle):
        return
    assert report is not None
    if report.waiting and report.phase == "IDLE":
        _observe_waiting(turn, target, report)
        return
    to, reason, message = _meaning(rollout, report)
    if to is TargetState.FAILED:
        turn.do(MoveTarget(target.device, to, reason, message))
    elif to is TargetState.ACTIVE:
        changes = {"active_at": turn.now, "at_active": facts.counters, "deadline": None}
        turn.do(MoveTarget(target.device, to, changes=changes))
    elif _RANK[to] > _RANK[target.state]:
        turn.do(MoveTarget(target.device, to))
    elif (reason or target.reason in _WAITS) and (reason, message) != (target.reason, target.message):
        # It tries again by itself; why, is worth knowing.
        turn.do(NoteTarget(target.device, {"reason": reason, "message": message}))


def _meaning(rollout: Rollout, report: Report) -> tuple[TargetState, str, str]:
    """State, reason and message that a report about our wish stands for."""
    if report.phase != "IDLE":
        return TargetState.PROBATION if report.phase in _LATE else TargetState.INSTALLING, "", ""
    if report.error and not report.retries:
        return TargetState.FAILED, report.error, report.message
    if runs(report.active, rollout.bundle):
        return TargetState.ACTIVE, "", ""
    if report.active is not None and report.active.reference == rollout.bundle.reference:
        other = f"it runs {report.active.reference} with the digest {report.active.digest[:12]}, which is another one"
        return TargetState.FAILED, WRONG_BYTES, other
    return TargetState.ASKED, report.error, report.message


def _observe_active(turn: Turn, target: Target, facts: DeviceFacts) -> None:
    report = facts.report
    if report is None or report.phase != "IDLE" or runs(report.active, turn.rollout.bundle):
        return
    now = "nothing" if report.active is None else report.active.reference
    message = f"it runs {now} now" + (f": {report.message}" if report.message else "")
    turn.do(MoveTarget(target.device, TargetState.FAILED, report.error or REVERTED, message))


def _observe_turn_back(turn: Turn, target: Target, facts: DeviceFacts) -> None:
    report, previous = facts.report, target.previous
    assert previous is not None
    if not concerns(report, turn.rollout.turn_back_revision(target), previous):
        return
    assert report is not None
    if report.phase != "IDLE":
        return
    if report.error and not report.retries:
        settle_turn_back(turn, target, TurnBack.REFUSED, report.error, report.message)
    elif runs(report.active, previous):
        settle_turn_back(turn, target, TurnBack.DONE, target.reason, target.message)


def settle_turn_back(turn: Turn, target: Target, how: TurnBack, reason: str, message: str) -> None:
    """Nothing more is expected of turning ``target`` back; one that did not come back is never called so."""
    changes = {"turn_back": how, "turn_back_deadline": None}
    if how is TurnBack.DONE:
        turn.do(MoveTarget(target.device, TargetState.ROLLED_BACK, reason, message, changes))
    elif target.open:
        turn.do(MoveTarget(target.device, TargetState.FAILED, reason, message, changes))
    else:
        turn.do(NoteTarget(target.device, {**changes, "reason": reason, "message": message}))


def free_slots(turn: Turn) -> None:
    """Give back the slots of targets that download no more."""
    for site, holders in turn.slots.items():
        for device in list(holders):
            target = turn.rollout.targets.get(device)
            if target is None or target.turn_back is TurnBack.REQUESTED:
                continue
            facts = turn.facts.devices.get(device)
            report = None if facts is None else facts.report
            loaded = (
                report is not None
                and report.revision == turn.rollout.revision(target)
                and (report.phase in _DOWNLOADED or report.prefetched)
            )
            if loaded or target.state not in (TargetState.ASKED, TargetState.INSTALLING):
                turn.do(FreeSlot(site, device))
