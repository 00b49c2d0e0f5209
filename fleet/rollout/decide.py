"""What happens next. Pure, and level-triggered: it looks at how things are, never at what has just happened, so that it
may be called at any time, twice, or after any outage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fleet.rollout.actions import Action, AddWave, MoveRollout, MoveTarget, MoveWave, NoteTarget, Turn
from fleet.rollout.asking import ALREADY_ACTIVE, ask, enforce_deadlines, is_counted
from fleet.rollout.canary import score_of
from fleet.rollout.evidence import evidence_of, judge_targets
from fleet.rollout.facts import Facts, increase_before
from fleet.rollout.gates import Outcome
from fleet.rollout.model import HELD_OUT, Rollout, Target, Wave
from fleet.rollout.observe import observe
from fleet.rollout.states import (
    ENDED,
    FAILURES,
    IN_PROGRESS,
    Deferral,
    RolloutState,
    TargetState,
    WaveState,
)
from fleet.rollout.turn_back import begin_turn_back, continue_turn_back, halt, stop_waiting
from fleet.rollout.waves import Candidate, Size, assign

EXPIRED = "expired"

_UNBLOCKING = (Deferral.OFFLINE, Deferral.PINNED)
"""Nobody knows for how long; a wave does not wait for them, and they catch up behind it."""


def decide(rollout: Rollout, facts: Facts, now: float) -> list[Action]:
    """What to do now, in this order; carried out by :func:`fleet.rollout.actions.apply`. ``now`` in Unix seconds.

    Whatever state the rollout is in, it ends within ``spec.expires`` and twice ``spec.deadline``.
    """
    turn = Turn(rollout, facts, now)
    if rollout.state in ENDED:
        return []
    if rollout.state in (RolloutState.DRAFT, RolloutState.WAITING_APPROVAL):
        if now >= rollout.created_at + rollout.spec.expires:
            stop_waiting(turn, EXPIRED)
            turn.do(MoveRollout(RolloutState.ABORTED, "it was not started before it expired"))
        return turn.actions
    observe(turn)
    enforce_deadlines(turn)
    if turn.rollout.state in (RolloutState.RUNNING, RolloutState.PAUSED):
        _halt(turn)
    if turn.rollout.state is RolloutState.RUNNING and not _is_over(turn):
        _proceed(turn)
    if turn.rollout.state is RolloutState.HALTED and rollout.spec.rollback != "none":
        everything = rollout.spec.rollback == "all"
        begin_turn_back(turn, turn.rollout.reason, everything=everything, ending=RolloutState.ROLLED_BACK)
    if turn.rollout.state is RolloutState.ROLLING_BACK:
        continue_turn_back(turn)
    elif turn.rollout.state not in ENDED:
        _expire(turn)
    return turn.actions


def _proceed(turn: Turn) -> None:
    for wave in turn.rollout.waves:
        if wave.state is WaveState.OPEN:
            _close_intake(turn, wave)
    for wave in turn.rollout.waves:
        if wave.state is WaveState.BAKING and turn.rollout.state is RolloutState.RUNNING:
            _judge_wave(turn, wave)
    if turn.rollout.state is not RolloutState.RUNNING:
        return
    if all(wave.state is WaveState.PASSED for wave in turn.rollout.waves):
        _judge_latecomers(turn)
        _halt(turn)
    if turn.rollout.state is not RolloutState.RUNNING:
        return
    _take_newcomers(turn)
    _open_next(turn)
    ask(turn)
    _finish(turn)


# Halting.
def _halt(turn: Turn) -> None:
    """Stop at the bound, at once, and before anything else is asked or judged: later successes change nothing."""
    rules = turn.rollout.spec.halt
    failures, executed = turn.rollout.failures, turn.rollout.executed
    if not failures:
        return
    if failures >= rules.max_failures:
        why = f"{failures} of {executed} devices failed, {rules.max_failures} are enough"
    elif executed >= rules.min_executed and 100 * failures >= rules.failure_percent * executed:
        why = f"{failures} of {executed} devices failed, {rules.failure_percent:g} % are enough"
    else:
        return
    halt(turn, f"{why}: {_common_reason(turn)}")


def _common_reason(turn: Turn, number: int | None = None) -> str:
    failed = [
        target for target in turn.rollout.targets.values() if target.state in FAILURES and number in (None, target.wave)
    ]
    reasons = Counter(target.reason or str(target.state) for target in failed)
    return ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))


# Waves.
def _close_intake(turn: Turn, wave: Wave) -> None:
    """From open to baking, once nobody is waited for; or to where a wave goes that nobody can be judged in."""
    targets = list(turn.rollout.wave_targets(wave.number))
    executed = [target for target in targets if target.executed]
    if any(_blocks(target) for target in targets):
        return
    waiting = [target for target in targets if target.state in (TargetState.PENDING, TargetState.DEFERRED)]
    if executed:
        _end_intake(turn, wave, executed)
    elif waiting:
        opened = turn.now if wave.opened is None else wave.opened
        if turn.now >= opened + turn.rollout.spec.patience:
            _pause_inconclusive(turn, wave, f"none of its {len(targets)} devices could be asked: {_waits(waiting)}")
    elif all(target.reason == ALREADY_ACTIVE for target in targets):
        turn.do(MoveWave(wave.number, WaveState.PASSED, "every device of it ran the bundle already"))
    else:
        _pause_inconclusive(turn, wave, "no device of it got the bundle")


def _blocks(target: Target) -> bool:
    if target.state in IN_PROGRESS or target.state is TargetState.PENDING:
        return True
    return target.state is TargetState.DEFERRED and target.reason not in _UNBLOCKING


def _waits(waiting: Sequence[Target]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in Counter(each.reason for each in waiting).most_common())


def _pause_inconclusive(turn: Turn, wave: Wave, why: str) -> None:
    turn.do(MoveWave(wave.number, WaveState.INCONCLUSIVE, why))
    turn.do(MoveRollout(RolloutState.PAUSED, f"wave {wave.number} is inconclusive: {why}"))


def _end_intake(turn: Turn, wave: Wave, executed: Sequence[Target]) -> None:
    if (why := _failed_share(turn, wave, executed)) is not None:
        halt(turn, why)
        return
    turn.do(MoveWave(wave.number, WaveState.BAKING, changes={"bake_until": turn.now + turn.rollout.spec.bake}))


def _failed_share(turn: Turn, wave: Wave, executed: Sequence[Target]) -> str | None:
    """At the end of a wave its own share decides, however few it has."""
    failed = [target for target in executed if target.state in FAILURES]
    if not failed or 100 * len(failed) < turn.rollout.spec.halt.failure_percent * len(executed):
        return None
    return f"{len(failed)} of {len(executed)} devices of wave {wave.number} failed: {_common_reason(turn, wave.number)}"


def _judge_wave(turn: Turn, wave: Wave) -> None:
    executed = [target for target in turn.rollout.wave_targets(wave.number) if target.executed]
    if (why := _failed_share(turn, wave, executed)) is not None:
        halt(turn, why)
        return
    if wave.bake_until is None or turn.now < wave.bake_until:
        return
    bake = turn.rollout.spec.bake
    judged = [
        target
        for target in turn.targets()
        if target.state is TargetState.ACTIVE
        and (target.wave == wave.number or (target.active_at is not None and turn.now >= target.active_at + bake))
    ]
    if turn.now < wave.bake_until + turn.rollout.spec.patience and _awaits_canary(turn, judged):
        return
    verdict = judge_targets(turn.rollout, turn.facts, judged)
    if verdict.outcome is Outcome.FAILED:
        halt(turn, f"wave {wave.number} does not hold: {verdict.text}")
    elif verdict.outcome is Outcome.INCONCLUSIVE:
        _pause_inconclusive(turn, wave, verdict.text)
    else:
        for target in judged:
            # Whoever is silent now was not judged; it is with the next wave, or by itself.
            if evidence_of(target, turn.facts).heard:
                turn.do(MoveTarget(target.device, TargetState.BAKED))
        turn.do(MoveWave(wave.number, WaveState.PASSED, verdict.text))


def _awaits_canary(turn: Turn, judged: Sequence[Target]) -> bool:
    """Whether one of them that is there has still to answer the canary, or to count what it answered."""
    if turn.rollout.spec.canary is None or turn.rollout.spec.gates.quality is None:
        return False
    for target in judged:
        facts = turn.facts.devices.get(target.device)
        score = score_of(turn.facts.scores, target.device, target.attempt)
        there = facts is not None and facts.online and facts.ready is not False
        if there and facts is not None and not (score is not None and score.is_enough and is_counted(score, facts)):
            return True
    return False


def _judge_latecomers(turn: Turn) -> None:
    """Devices that caught up after the last wave: each by itself, on what there is of it."""
    for target in turn.targets():
        if target.state is not TargetState.ACTIVE or target.active_at is None:
            continue
        baked_at = target.active_at + turn.rollout.spec.bake
        if turn.now < baked_at:
            continue
        if turn.now < baked_at + turn.rollout.spec.patience and _awaits_canary(turn, [target]):
            continue
        verdict = judge_targets(turn.rollout, turn.facts, [target])
        if verdict.outcome is Outcome.FAILED:
            turn.do(MoveTarget(target.device, TargetState.FAILED, "gate", verdict.text))
        elif verdict.values[0].outcome is Outcome.PASSED:
            little = verdict.outcome is Outcome.INCONCLUSIVE
            turn.do(MoveTarget(target.device, TargetState.BAKED, "ready_alone" if little else "", verdict.text))


def _take_newcomers(turn: Turn) -> None:
    """Late devices of a dynamic rollout become further waves, behind the gates of those before."""
    fresh = [each for each in turn.facts.newcomers if each.device not in turn.rollout.targets]
    waves = turn.rollout.waves
    if turn.rollout.spec.mode != "dynamic" or not fresh or (waves and waves[-1].state is WaveState.PENDING):
        return
    by_device = {each.device: each for each in fresh}
    number = max((wave.number for wave in waves), default=0)
    found = assign(str(turn.rollout.id), [Candidate(*each) for each in fresh], turn.rollout.spec.waves, Size())
    for devices in found.waves:
        number += 1
        turn.do(
            AddWave(
                tuple(
                    Target(device=device, wave=number, hardware=by_device[device].hardware, site=by_device[device].site)
                    for device in devices
                )
            )
        )


def _open_next(turn: Turn) -> None:
    for wave in turn.rollout.waves:
        if wave.state is WaveState.PENDING:
            turn.do(MoveWave(wave.number, WaveState.OPEN, changes={"opened": turn.now}))
            _mark_control(turn)
            return
        if wave.state is not WaveState.PASSED:
            return


def _mark_control(turn: Turn) -> None:
    """From here on the control group is compared with the wave."""
    for target in turn.targets():
        facts = turn.facts.devices.get(target.device)
        if target.reason == HELD_OUT and facts is not None:
            baseline = target.baseline if target.baseline is not None else increase_before(facts)
            changes = {"baseline": baseline, "at_active": facts.counters, "active_at": turn.now}
            turn.do(NoteTarget(target.device, changes))


# Ends.
def _finish(turn: Turn) -> None:
    if turn.rollout.spec.mode == "dynamic" or not _settled(turn):
        return
    turn.do(MoveRollout(RolloutState.DONE, _summary(turn)))


def _settled(turn: Turn) -> bool:
    passed = all(wave.state is WaveState.PASSED for wave in turn.rollout.waves)
    return passed and not any(target.open for target in turn.rollout.targets.values())


def _summary(turn: Turn) -> str:
    counts = Counter(str(target.state) for target in turn.rollout.targets.values() if target.reason != HELD_OUT)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _is_over(turn: Turn) -> bool:
    """Whether its time is up: nobody is asked any more."""
    rollout = turn.rollout
    started = rollout.created_at if rollout.started_at is None else rollout.started_at
    return turn.now >= started + rollout.spec.expires


def _expire(turn: Turn) -> None:
    """No rollout goes on for ever: at its end every device is told by what it is, and none is called a success."""
    rollout = turn.rollout
    if not _is_over(turn):
        return
    stop_waiting(turn, EXPIRED)
    if any(target.state in IN_PROGRESS for target in turn.rollout.targets.values()):
        # Their own deadlines are near; nobody else is asked meanwhile.
        return
    for target in turn.targets():
        if target.state is TargetState.ACTIVE:
            turn.do(MoveTarget(target.device, TargetState.SKIPPED, EXPIRED, "it runs the bundle, which was not judged"))
    done = rollout.state is RolloutState.RUNNING and _settled(turn)
    turn.do(MoveRollout(RolloutState.DONE if done else RolloutState.ABORTED, f"it expired; {_summary(turn)}"))
