"""What a person may do to a rollout, and when; each function says what changes, or refuses in one sentence."""

from __future__ import annotations

from contract.errors import RequestInvalid
from fleet.rollout.actions import Action, MoveRollout, MoveTarget, MoveWave, NoteTarget, Turn
from fleet.rollout.facts import Facts
from fleet.rollout.model import Rollout
from fleet.rollout.states import FAILURES, IN_PROGRESS, RolloutState, TargetState, TurnBack, WaveState
from fleet.rollout.turn_back import begin_turn_back, give_up_turn_back, stop_waiting
from fleet.rollout.turn_back import halt as stop

_S = RolloutState


def _refuse(rollout: Rollout, what: str, when: str) -> RequestInvalid:
    return RequestInvalid(
        f"rollout {rollout.id} is {rollout.state} and cannot be {what}: {when}",
        code=409,
        kind="conflict",
        field="state",
    )


def start(rollout: Rollout, now: float) -> list[Action]:
    """Begin, or ask for the approval that it needs.

    Raises:
        RequestInvalid: it is no draft.
    """
    if rollout.state is not _S.DRAFT:
        raise _refuse(rollout, "started", "only a draft can")
    turn = Turn(rollout, Facts(), now)
    if rollout.spec.approval:
        turn.do(MoveRollout(_S.WAITING_APPROVAL, "it needs the approval of another person than its author"))
    else:
        turn.do(MoveRollout(_S.RUNNING, changes={"started_at": now}))
    return turn.actions


def approve(rollout: Rollout, by: str, now: float) -> list[Action]:
    """Let it begin.

    Raises:
        RequestInvalid: it does not wait for that, or ``by`` is its author.
    """
    if rollout.state is not _S.WAITING_APPROVAL:
        raise _refuse(rollout, "approved", "only one that waits for approval can")
    if by == rollout.created_by:
        raise RequestInvalid(
            f"{by} is the author of rollout {rollout.id}: another person has to approve it", code=403, kind="forbidden"
        )
    turn = Turn(rollout, Facts(), now)
    turn.do(MoveRollout(_S.RUNNING, changes={"started_at": now, "approved_by": by}))
    return turn.actions


def pause(rollout: Rollout, by: str, now: float) -> list[Action]:
    """Send nothing new; what is under way goes on, and failures still halt.

    Raises:
        RequestInvalid: it does not run.
    """
    if rollout.state is not _S.RUNNING:
        raise _refuse(rollout, "paused", "only a running one can")
    turn = Turn(rollout, Facts(), now)
    turn.do(MoveRollout(_S.PAUSED, f"paused by {by}"))
    return turn.actions


def resume(rollout: Rollout, by: str, now: float, accept: str | None = None) -> list[Action]:
    """Go on. A wave that was inconclusive bakes again; with ``accept``, the reason why, it passes on a person's word.

    Raises:
        RequestInvalid: it is not paused, or there is nothing to accept.
    """
    if rollout.state is not _S.PAUSED:
        raise _refuse(rollout, "resumed", "only a paused one can")
    turn = Turn(rollout, Facts(), now)
    unclear = [wave for wave in rollout.waves if wave.state is WaveState.INCONCLUSIVE]
    if accept is not None and not unclear:
        raise RequestInvalid(f"no wave of rollout {rollout.id} is inconclusive: there is nothing to accept", code=409)
    for wave in unclear:
        targets = list(rollout.wave_targets(wave.number))
        if accept is not None:
            for target in targets:
                if target.state is TargetState.ACTIVE:
                    turn.do(MoveTarget(target.device, TargetState.BAKED, "accepted", accept))
            turn.do(MoveWave(wave.number, WaveState.PASSED, f"accepted by {by}: {accept}"))
        elif any(target.executed for target in targets):
            until = now + rollout.spec.bake
            turn.do(MoveWave(wave.number, WaveState.BAKING, changes={"bake_until": until}))
        else:
            turn.do(MoveWave(wave.number, WaveState.OPEN, changes={"opened": now}))
    turn.do(MoveRollout(_S.RUNNING))
    return turn.actions


def halt(rollout: Rollout, by: str, now: float) -> list[Action]:
    """Stop it as a failed gate would: what happens then is what its ``rollback`` says.

    Raises:
        RequestInvalid: it neither runs nor is paused.
    """
    if rollout.state not in (_S.RUNNING, _S.PAUSED):
        raise _refuse(rollout, "halted", "only a running or paused one can")
    turn = Turn(rollout, Facts(), now)
    stop(turn, f"halted by {by}")
    return turn.actions


def abort(rollout: Rollout, by: str, now: float) -> list[Action]:
    """End it, whatever it does; those under way, and those not judged yet, are turned back.

    Raises:
        RequestInvalid: it has ended.
    """
    turn = Turn(rollout, Facts(), now)
    reason = f"aborted by {by}"
    if rollout.state is _S.ROLLING_BACK:
        give_up_turn_back(turn, f"{reason} while it was turned back")
        return turn.actions
    if rollout.state in (_S.ROLLED_BACK, _S.DONE, _S.ABORTED):
        raise _refuse(rollout, "aborted", "it has ended")
    under_way = any(
        target.state in IN_PROGRESS or target.state is TargetState.ACTIVE for target in rollout.targets.values()
    )
    if under_way:
        begin_turn_back(turn, reason, everything=False, ending=_S.ABORTED)
    else:
        stop_waiting(turn, str(_S.ABORTED))
        turn.do(MoveRollout(_S.ABORTED, reason))
    return turn.actions


def retry(rollout: Rollout, by: str, now: float) -> list[Action]:
    """Ask those again that failed or timed out, and nobody else; a halted rollout runs again by that.

    Raises:
        RequestInvalid: nothing failed, or it is in no state for it.
    """
    if rollout.state not in (_S.RUNNING, _S.PAUSED, _S.HALTED):
        raise _refuse(rollout, "retried", "only a running, paused or halted one can; start another one")
    failed = [
        target
        for target in rollout.targets.values()
        if target.state in FAILURES and target.turn_back is not TurnBack.SUPERSEDED
    ]
    if not failed:
        raise RequestInvalid(
            f"no device of rollout {rollout.id} failed or timed out that is still its own", code=409, kind="conflict"
        )
    turn = Turn(rollout, Facts(), now)
    for target in failed:
        turn.do(MoveTarget(target.device, TargetState.PENDING, changes={"deadline": None, "turn_back": None}))
    for wave in rollout.waves:
        if wave.state is WaveState.FAILED:
            turn.do(MoveWave(wave.number, WaveState.OPEN, changes={"opened": now, "bake_until": None}))
    if rollout.state is _S.HALTED:
        turn.do(MoveRollout(_S.RUNNING, f"retried by {by}"))
    return turn.actions


def supersede(rollout: Rollout, devices: frozenset[str], newer: int, now: float) -> list[Action]:
    """Give ``devices`` up to the rollout ``newer``, for good."""
    turn = Turn(rollout, Facts(), now)
    by = f"by rollout {newer}"
    for target in turn.targets():
        if target.device not in devices:
            continue
        # Also of those that are settled: neither retry nor a later turn back may touch what the newer one rolls out.
        turn.do(NoteTarget(target.device, {"turn_back": TurnBack.SUPERSEDED, "turn_back_deadline": None}))
        if target.open:
            turn.do(MoveTarget(target.device, TargetState.SUPERSEDED, f"rollout_{newer}", f"superseded {by}"))
    return turn.actions
