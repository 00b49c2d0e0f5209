"""The table of installation, walked exhaustively."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.install.update.state_machine import TABLE, Action, Event, IllegalEvent, State, step

OBTAINING = {State.RESOLVE, State.CHECK, State.RESERVE, State.FETCH, State.VERIFY, State.SEAL}


def reachable(start: State, without: frozenset[Event] = frozenset()) -> set[State]:
    seen, queue = {start}, deque([start])
    while queue:
        here = queue.popleft()
        for (state, event), (following, _) in TABLE.items():
            if state is here and event not in without and following not in seen:
                seen.add(following)
                queue.append(following)
    return seen


def test_every_state_can_be_reached_from_idle() -> None:
    assert reachable(State.IDLE) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_way_to_idle(state: State) -> None:
    assert State.IDLE in reachable(state)


@pytest.mark.parametrize("state", State)
def test_every_state_knows_how_to_go_on_after_a_restart(state: State) -> None:
    following, actions = step(state, Event.RESTARTED)
    assert following in {State.IDLE, State.ROLLBACK, State.COMMIT}
    assert Action.RESTORE in actions, "after a restart something has to serve"


def test_nothing_is_committed_that_did_not_hold() -> None:
    """COMMIT is entered from probation alone, and the candidate is served only after its canary."""
    assert {state for (state, _), (following, _) in TABLE.items() if following is State.COMMIT} == {
        State.PROBATION,
        State.COMMIT,
    }
    assert {key for key, (following, _) in TABLE.items() if following is State.SWITCH} == {
        (State.CANARY, Event.CANARY_PASSED)
    }
    assert State.COMMIT not in reachable(State.IDLE, frozenset({Event.HELD}))


def test_a_failed_candidate_is_quarantined_and_the_old_bundle_restored() -> None:
    for state in (State.CANARY, State.SWITCH, State.PROBATION):
        assert step(state, Event.FAILED) == (State.ROLLBACK, (Action.QUARANTINE, Action.RESTORE))


def test_a_candidate_can_be_superseded_whenever_nothing_is_half_switched() -> None:
    superseded = {state for state, event in TABLE if event is Event.SUPERSEDED}
    assert superseded == OBTAINING | {
        State.CANARY,
        State.PROBATION,
    }


def test_only_a_failure_quarantines() -> None:
    for (state, event), (_, actions) in TABLE.items():
        if Action.QUARANTINE in actions:
            assert event is Event.FAILED or (state, event) == (State.ROLLBACK, Event.RESTARTED)


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_an_illegal_event_raises_and_changes_nothing(events: list[Event]) -> None:
    state, before = State.IDLE, dict(TABLE)
    for event in events:
        if (state, event) in TABLE:
            state, _ = step(state, event)
            assert state in reachable(State.IDLE)
        else:
            with pytest.raises(IllegalEvent):
                step(state, event)
    assert before == TABLE
