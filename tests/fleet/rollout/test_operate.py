"""What a person may do to a rollout, and when not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contract.errors import RequestInvalid
from fleet.rollout.actions import Action, IllegalMove, MoveRollout, MoveTarget, MoveWave, apply
from fleet.rollout.model import Rollout
from fleet.rollout.operate import abort, approve, halt, pause, resume, retry, start, supersede
from fleet.rollout.states import (
    ENDED,
    ROLLOUT,
    TARGET,
    WAVE,
    RolloutState,
    TargetState,
    TurnBack,
    WaveState,
)
from tests.fleet.rollout.world import OLD, World

S, T, W = RolloutState, TargetState, WaveState


def test_the_tables_are_whole_and_end() -> None:
    assert set(ROLLOUT) == set(S)
    assert set(WAVE) == set(W)
    assert set(TARGET) == set(T)
    assert {state for state, after in ROLLOUT.items() if not after} == ENDED


def test_what_no_table_allows_is_refused_and_changes_nothing() -> None:
    world = World()
    name = world.wave(1)[0]
    for move in (MoveRollout(S.ROLLED_BACK), MoveTarget(name, T.BAKED), MoveWave(1, W.PASSED)):
        before = world.rollout
        with pytest.raises(IllegalMove):
            apply(world.rollout, [move])
        assert world.rollout == before


def test_an_approval_is_somebody_elses() -> None:
    world = World(approval=True)
    world.take(start(world.rollout, world.now))
    assert world.rollout.state is S.WAITING_APPROVAL
    assert world.decide() == []
    with pytest.raises(RequestInvalid, match="ann is the author") as raised:
        approve(world.rollout, "ann", world.now)
    assert raised.value.code == 403
    world.take(approve(world.rollout, "bob", world.now))
    assert (world.rollout.state, world.rollout.approved_by) == (S.RUNNING, "bob")


def _resume(rollout: Rollout, now: float) -> list[Action]:
    return resume(rollout, "bob", now)


OPERATIONS: dict[str, Callable[[Rollout, float], list[Action]]] = {
    "start": start,
    "approve": lambda rollout, now: approve(rollout, "bob", now),
    "pause": lambda rollout, now: pause(rollout, "bob", now),
    "resume": _resume,
    "retry": lambda rollout, now: retry(rollout, "bob", now),
    "abort": lambda rollout, now: abort(rollout, "bob", now),
    "halt": lambda rollout, now: halt(rollout, "bob", now),
}
ALLOWED = {
    "start": {S.DRAFT},
    "approve": {S.WAITING_APPROVAL},
    "pause": {S.RUNNING},
    "resume": {S.PAUSED},
    "abort": set(S) - ENDED,
    "halt": {S.RUNNING, S.PAUSED},
}


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("name", ALLOWED)
def test_each_operation_belongs_to_its_states(name: str, state: RolloutState) -> None:
    from msgspec import structs

    world = World()
    rollout = structs.replace(world.rollout, state=state)
    if state in ALLOWED[name]:
        OPERATIONS[name](rollout, world.now)
        return
    with pytest.raises(RequestInvalid) as raised:
        OPERATIONS[name](rollout, world.now)
    assert raised.value.code == 409
    assert f"rollout 1 is {state}" in raised.value.message


def test_retrying_asks_those_that_failed_and_nobody_else() -> None:
    world = World(rollback="none").begin()
    world.decide()
    with pytest.raises(RequestInvalid, match="no device of rollout 1 failed or timed out"):
        retry(world.rollout, "bob", world.now)
    world.fail(world.wave(1)[0])
    world.decide(1)
    moved = [each for each in retry(world.rollout, "bob", world.now) if isinstance(each, MoveTarget)]
    assert [each.device for each in moved] == world.wave(1)


@pytest.mark.parametrize("rollback", ["wave", "none"])
def test_halting_by_hand_is_what_a_failed_gate_does(rollback: str) -> None:
    world = World(rollback=rollback).begin()
    world.decide()
    world.obey_all()
    (canary,) = world.wave(1)
    world.take(halt(world.rollout, "bob", world.now))
    assert (world.rollout.state, world.rollout.reason) == (S.HALTED, "halted by bob")
    world.decide(1)
    if rollback == "none":
        assert (world.rollout.state, world.state(canary)) == (S.HALTED, T.ACTIVE)
        return
    assert world.rollout.state is S.ROLLING_BACK
    world.obey(canary)
    world.decide(1)
    assert (world.rollout.state, world.state(canary)) == (S.ROLLED_BACK, T.ROLLED_BACK)


def test_aborting_turns_back_those_under_way() -> None:
    world = World().begin()
    world.decide()
    (canary,) = world.wave(1)
    world.report(canary, "FETCH")
    world.take(abort(world.rollout, "bob", world.now))
    assert world.rollout.state is S.ROLLING_BACK
    assert world.wishes[canary].bundle == OLD
    world.obey(canary)
    world.decide(1)
    assert (world.rollout.state, world.state(canary)) == (S.ABORTED, T.ROLLED_BACK)
    assert world.rollout.reason == "aborted by bob"


def test_aborting_while_it_is_turned_back_waits_for_nobody() -> None:
    world = World().begin()
    world.decide()
    world.fail(world.wave(1)[0])
    world.decide(1)
    assert world.rollout.state is S.ROLLING_BACK
    world.take(abort(world.rollout, "bob", world.now))
    assert world.rollout.state is S.ABORTED
    assert world.rollout.targets[world.wave(1)[0]].turn_back is TurnBack.TIMED_OUT
    assert "1 of 1 devices were not turned back" in world.rollout.reason


def test_a_newer_rollout_takes_its_devices() -> None:
    world = World().begin()
    world.decide()
    taken = frozenset(list(world.devices)[:4])
    world.take(supersede(world.rollout, taken, 2, world.now))
    assert set(world.in_state(T.SUPERSEDED)) == taken
    assert {world.rollout.targets[name].reason for name in taken} == {"rollout_2"}


def test_what_a_newer_rollout_took_is_neither_retried_nor_turned_back_by_the_older() -> None:
    world = World(rollback="none").begin()
    world.decide()
    (canary,) = world.wave(1)
    world.fail(canary)
    world.decide(1)
    world.take(supersede(world.rollout, frozenset([canary]), 2, world.now))
    with pytest.raises(RequestInvalid, match="that is still its own"):
        retry(world.rollout, "bob", world.now)
    sent = len(world.published)
    world.take(abort(world.rollout, "bob", world.now))
    world.decide(1)
    assert len(world.published) == sent
    assert world.rollout.state is S.ABORTED


def test_there_is_nothing_to_accept_where_nothing_is_inconclusive() -> None:
    world = World().begin()
    world.take(pause(world.rollout, "bob", world.now))
    with pytest.raises(RequestInvalid, match="there is nothing to accept"):
        resume(world.rollout, "bob", world.now, accept="why not")
