"""Whom to ask now: the devices of waves that are open, within every bound."""

from __future__ import annotations

from collections.abc import Mapping

from contract.windows import is_open
from fleet.rollout.actions import MoveTarget, Publish, TakeSlot, Turn
from fleet.rollout.canary import BEFORE, SAMPLE_SECONDS, Score, score_of
from fleet.rollout.facts import DeviceFacts, increase_before
from fleet.rollout.model import Target
from fleet.rollout.observe import activates_from, runs
from fleet.rollout.states import IN_PROGRESS, WAITING, Deferral, TargetState, WaveState

ALREADY_ACTIVE = "already_active"
"""Reason of a device that ran the bundle before it was asked."""

_OPENED = (WaveState.OPEN, WaveState.BAKING, WaveState.PASSED)


def ask(turn: Turn) -> None:
    """Send wishes to those that may have them, and say of the others what they wait for."""
    opened = {wave.number: wave.opened for wave in turn.rollout.waves if wave.state in _OPENED}
    spec = turn.rollout.spec
    in_window = spec.prefetch or is_open(spec.windows, turn.now)
    in_progress = sum(target.state in IN_PROGRESS for target in turn.rollout.targets.values())
    for target in turn.targets():
        if target.state not in WAITING or target.wave not in opened:
            continue
        facts = turn.facts.devices.get(target.device)
        if facts is not None and runs(facts.active, turn.rollout.bundle):
            turn.do(MoveTarget(target.device, TargetState.SKIPPED, ALREADY_ACTIVE))
        elif (why := _deferral(turn, target, facts, in_window=in_window)) is not None:
            _defer(turn, target, why, opened)
        elif in_progress < spec.max_in_progress:
            assert facts is not None
            _send(turn, target, facts)
            in_progress += 1


def _deferral(turn: Turn, target: Target, facts: DeviceFacts | None, *, in_window: bool) -> Deferral | None:
    spec = turn.rollout.spec
    if facts is None or not facts.online:
        return Deferral.OFFLINE
    if facts.pinned:
        return Deferral.PINNED
    if not in_window:
        return Deferral.WINDOW
    if _awaits_canary(turn, target, facts):
        return Deferral.CANARY
    if spec.slots_per_site and len(_others(turn.slots, target)) >= spec.slots_per_site:
        return Deferral.SLOT
    return None


def _awaits_canary(turn: Turn, target: Target, facts: DeviceFacts) -> bool:
    """Whether it has to answer the canary with what it runs now, first: while it runs something and answers, and for
    ``patience`` at most.
    """
    if turn.rollout.spec.canary is None or target.attempt or facts.active is None or facts.ready is False:
        return False
    late = target.reason == Deferral.CANARY and target.deadline is not None and turn.now >= target.deadline
    return not late and not is_counted(score_of(turn.facts.scores, target.device, BEFORE), facts)


def is_counted(score: Score | None, facts: DeviceFacts) -> bool:
    """Whether the canary is over, and the device's counters have it."""
    return score is not None and facts.heard_at is not None and facts.heard_at > score.at + SAMPLE_SECONDS


def _others(slots: Mapping[str, Mapping[str, float]], target: Target) -> list[str]:
    return [device for device in slots.get(target.site, {}) if device != target.device]


def _defer(turn: Turn, target: Target, why: Deferral, opened: Mapping[int, float | None]) -> None:
    since = opened[target.wave]
    if since is not None and turn.now >= since + turn.rollout.spec.offline:
        turn.do(MoveTarget(target.device, TargetState.SKIPPED, str(why)))
    elif target.state is not TargetState.DEFERRED or target.reason != why:
        deadline = turn.now + turn.rollout.spec.patience if why is Deferral.CANARY else None
        turn.do(MoveTarget(target.device, TargetState.DEFERRED, str(why), changes={"deadline": deadline}))


def _send(turn: Turn, target: Target, facts: DeviceFacts) -> None:
    rollout, spec = turn.rollout, turn.rollout.spec
    baseline = increase_before(facts) if target.baseline is None else target.baseline
    changes = {
        "attempt": target.attempt + 1,
        "asked_at": turn.now,
        "deadline": activates_from(turn) + spec.deadline,
        "active_at": None,
        # What it ran before the first attempt, not what a failed one left.
        "previous": target.previous if target.attempt else facts.active,
        "baseline": baseline,
        "seen": False,
        "turn_back": None,
        "turn_back_deadline": None,
    }
    turn.do(MoveTarget(target.device, TargetState.ASKED, changes=changes))
    asked = turn.rollout.targets[target.device]
    windows = spec.windows if spec.prefetch else ()
    turn.do(Publish(target.device, rollout.revision(asked), rollout.bundle, spec.source, windows))
    if spec.slots_per_site:
        turn.do(TakeSlot(target.site, target.device, turn.now + spec.slot_expires))


def enforce_deadlines(turn: Turn) -> None:
    """A device that was there and took too long has failed; one that was not waits again, without its wish."""
    for target in turn.targets():
        if target.state not in IN_PROGRESS or target.turn_back is not None:
            continue
        facts = turn.facts.devices.get(target.device)
        was_there = target.state is not TargetState.ASKED or _online_since(facts, target.asked_at)
        if target.deadline is None or turn.now < target.deadline:
            continue
        if was_there:
            last = target.message or f"it was still {target.state}"
            message = f"not active within its deadline: {last}"
            turn.do(MoveTarget(target.device, TargetState.TIMED_OUT, target.reason or "timed_out", message))
        else:
            turn.do(MoveTarget(target.device, TargetState.DEFERRED, str(Deferral.OFFLINE)))
            # A wish that stands would be followed behind every gate's back.
            turn.do(Publish(target.device, f"{turn.rollout.revision(target)}.deferred", target.previous))


def _online_since(facts: DeviceFacts | None, when: float | None) -> bool:
    if facts is None or when is None:
        return False
    return facts.online or (facts.seen_at is not None and facts.seen_at > when)
