"""Turning back: what a halted or aborted rollout does to the devices that have, or are getting, its bundle."""

from __future__ import annotations

from fleet.rollout.actions import MoveRollout, MoveTarget, MoveWave, NoteTarget, Publish, Turn
from fleet.rollout.model import Target
from fleet.rollout.observe import settle_turn_back
from fleet.rollout.states import IN_PROGRESS, WAITING, RolloutState, TargetState, TurnBack, WaveState

_AT_WORK = (WaveState.OPEN, WaveState.BAKING, WaveState.INCONCLUSIVE)

NO_PREVIOUS = "no_previous"
"""Reason of a device that ran nothing before, and so cannot be turned back to it."""

NOT_CONFIRMED = "not_confirmed"
"""Reason of a device that did not say in time that it was turned back. The wish stands."""


def halt(turn: Turn, why: str) -> None:
    """Every wave at work has failed, and the rollout with them."""
    for wave in turn.rollout.waves:
        if wave.state in _AT_WORK:
            turn.do(MoveWave(wave.number, WaveState.FAILED, why))
    turn.do(MoveRollout(RolloutState.HALTED, why))


def begin_turn_back(turn: Turn, reason: str, *, everything: bool, ending: RolloutState) -> None:
    """Stop what waits and ask those back that got the bundle: all of them, or all whose wave has not passed."""
    stop_waiting(turn, str(ending))
    turn.do(MoveRollout(RolloutState.ROLLING_BACK, reason, {"ending": ending}))
    for target in turn.targets():
        if target.attempt and in_scope(target, everything=everything):
            ask_back(turn, target)


def stop_waiting(turn: Turn, reason: str) -> None:
    """Whoever was not asked yet will not be."""
    for target in turn.targets():
        if target.state in WAITING:
            turn.do(MoveTarget(target.device, TargetState.SKIPPED, reason))


def in_scope(target: Target, *, everything: bool) -> bool:
    """Whether ``target`` has to go back: what was judged good stays, unless everything has to."""
    if target.turn_back is TurnBack.SUPERSEDED:
        return False
    if target.state in (TargetState.FAILED, TargetState.TIMED_OUT, TargetState.ACTIVE) or target.state in IN_PROGRESS:
        return True
    return everything and target.state is TargetState.BAKED


def ask_back(turn: Turn, target: Target) -> None:
    """Wish for what the device ran before; where that was nothing, withdraw the wish, and say that this is all."""
    rollout = turn.rollout
    revision = rollout.turn_back_revision(target)
    turn.do(Publish(target.device, revision, target.previous, rollout.spec.source))
    if target.previous is None:
        settle_turn_back(turn, target, TurnBack.IMPOSSIBLE, NO_PREVIOUS, "it ran no bundle before")
        return
    deadline = turn.now + rollout.spec.deadline
    turn.do(NoteTarget(target.device, {"turn_back": TurnBack.REQUESTED, "turn_back_deadline": deadline}))


def continue_turn_back(turn: Turn) -> None:
    """Give up on those whose time is over; when nothing is expected any more, the rollout has ended."""
    for target in turn.targets():
        late = target.turn_back_deadline is not None and turn.now >= target.turn_back_deadline
        if target.turn_back is TurnBack.REQUESTED and late:
            message = "it did not say that it was turned back; the wish stands"
            settle_turn_back(turn, target, TurnBack.TIMED_OUT, NOT_CONFIRMED, message)
    if any(target.turn_back is TurnBack.REQUESTED for target in turn.rollout.targets.values()):
        return
    _end(turn, turn.rollout.ending, turn.rollout.reason)


def give_up_turn_back(turn: Turn, reason: str) -> None:
    """Wait no longer for devices that were asked back; the wishes stand."""
    for target in turn.targets():
        if target.turn_back is TurnBack.REQUESTED:
            settle_turn_back(turn, target, TurnBack.TIMED_OUT, NOT_CONFIRMED, "it was not waited for; the wish stands")
    _end(turn, RolloutState.ABORTED, reason)


def _end(turn: Turn, to: RolloutState, reason: str) -> None:
    for target in turn.targets():
        # Not asked back, and nobody follows it any more.
        if target.open:
            turn.do(MoveTarget(target.device, TargetState.SUPERSEDED, str(to)))
    asked = [target.turn_back for target in turn.rollout.targets.values() if target.turn_back is not None]
    kept = [how for how in asked if how not in (TurnBack.DONE, TurnBack.SUPERSEDED)]
    if kept:
        reason += f"; {len(kept)} of {len(asked)} devices were not turned back"
    turn.do(MoveRollout(to, reason))
