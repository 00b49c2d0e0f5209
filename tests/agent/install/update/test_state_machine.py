"""The table of an update, walked exhaustively and at random."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.install.update import diagram
from agent.install.update.state_machine import (
    DOWNLOADING,
    RESULTS,
    STEPS,
    TABLE,
    Action,
    Event,
    IllegalEvent,
    State,
    recorded_state,
    restart_event,
    step,
)

ORDERS = {event for state, event in TABLE if state is State.IDLE} - {Event.RESTARTED}
"""What may come while nothing is being done."""


def reachable(start: State, without: frozenset[Event] = frozenset()) -> set[State]:
    seen, queue = {start}, deque([start])
    while queue:
        here = queue.popleft()
        for (state, event), entry in TABLE.items():
            if state is here and event not in without and entry.state not in seen:
                seen.add(entry.state)
                queue.append(entry.state)
    return seen


def running(state: State) -> set[Action]:
    """The actions whose result may be waited for in ``state``."""
    found = {
        action for entry in TABLE.values() if entry.state is state for action in entry.actions if action in RESULTS
    }
    return found | ({Action.OBTAIN} if state in DOWNLOADING else set())


def test_every_state_can_be_reached_from_idle() -> None:
    assert reachable(State.IDLE) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_way_to_idle(state: State) -> None:
    assert State.IDLE in reachable(state)


@pytest.mark.parametrize("state", State)
def test_every_state_knows_how_to_go_on_after_a_restart(state: State) -> None:
    for failed in (False, True):
        entry = step(state, restart_event(state, failed=failed))
        assert entry.state in {State.IDLE, State.ROLLBACK, State.COMMIT}
        assert Action.RESTORE in entry.actions, "after a restart something has to serve"


def test_exactly_one_entry_commits_what_held() -> None:
    assert [key for key, entry in TABLE.items() if entry.commits] == [(State.PROBATION, Event.HELD)]
    assert {key for key, entry in TABLE.items() if entry.state is State.COMMIT} == {
        (State.PROBATION, Event.HELD),
        (State.COMMIT, Event.RESTARTED),
    }
    assert {key for key, entry in TABLE.items() if entry.state is State.SWITCH} == {(State.CANARY, Event.CANARY_PASSED)}


def test_only_the_last_action_has_a_result_and_each_result_is_known_where_it_comes() -> None:
    for (state, event), entry in TABLE.items():
        assert not any(action in RESULTS for action in entry.actions[:-1]), (state, event)
        waits = bool(entry.actions) and entry.actions[-1] in RESULTS
        assert waits or entry.state is State.IDLE or (state, entry.state) in _steps(), f"{state}, {event}: stuck"
    for state in State:
        for action in running(state):
            for event in RESULTS[action] - STEPS:
                assert (state, event) in TABLE, f"{action} may end with {event} in {state}"


def _steps() -> set[tuple[State, State]]:
    """From one state of a download to the next, while the installer runs on."""
    return {
        (state, entry.state) for (state, event), entry in TABLE.items() if event in STEPS and state is not State.SEAL
    }


def test_every_action_is_ordered_and_every_event_is_heard() -> None:
    assert {action for entry in TABLE.values() for action in entry.actions} == set(Action)
    assert {event for _, event in TABLE} == set(Event)
    results = {event for events in RESULTS.values() for event in events}
    assert results | ORDERS | {Event.RESTARTED, Event.RESTARTED_FAILED} == set(Event)


def test_a_failed_candidate_is_quarantined_and_the_old_bundle_restored() -> None:
    for state in (State.CANARY, State.SWITCH, State.PROBATION):
        entry = step(state, Event.FAILED)
        assert entry.state is State.ROLLBACK
        assert entry.actions == (Action.QUARANTINE, Action.RESTORE, Action.REPORT_ROLLBACK)


def test_a_target_can_be_superseded_whenever_nothing_is_half_switched() -> None:
    found = {state for state, event in TABLE if event is Event.SUPERSEDED}
    assert found == {*DOWNLOADING, State.CANARY, State.PROBATION}


def test_only_a_failure_quarantines() -> None:
    for (state, event), entry in TABLE.items():
        if Action.QUARANTINE in entry.actions:
            assert event in {Event.FAILED, Event.RESTARTED_FAILED}, state


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_an_illegal_event_raises_and_changes_nothing(events: list[Event]) -> None:
    state, before = State.IDLE, dict(TABLE)
    for event in events:
        if (state, event) in TABLE:
            state = step(state, event).state
            assert state in reachable(State.IDLE)
        else:
            with pytest.raises(IllegalEvent):
                step(state, event)
    assert before == TABLE


@given(st.data())
def test_every_path_ends_and_commits_at_most_once(data: st.DataObject) -> None:
    """An update with whatever results its actions may have, killed at any points: it ends, with one commit at most."""
    state, event = State.IDLE, Event.WANTED
    commits, failed, kills = 0, False, data.draw(st.integers(0, 5))
    # Each state at most twice between two kills: RESOLVE to PROBATION, then COMMIT or ROLLBACK, then IDLE.
    for _ in range((kills + 1) * 2 * len(State)):
        entry = step(state, event)
        commits += entry.commits
        failed = (failed or event is Event.FAILED) if entry.state is State.ROLLBACK else False
        state = entry.state
        waits = entry.actions[-1] if entry.actions and entry.actions[-1] in RESULTS else None
        if state is State.IDLE:
            break
        if kills and data.draw(st.booleans()):
            kills -= 1
            event = restart_event(state, failed=failed)
            continue
        results = RESULTS[waits or Action.OBTAIN]
        event = data.draw(st.sampled_from(sorted(event for event in results if (state, event) in TABLE)))
    assert state is State.IDLE, "it has not ended"
    assert commits <= 1


@pytest.mark.parametrize("phase", State)
def test_what_is_recorded_without_its_candidate_is_no_state_to_go_on_from(phase: State) -> None:
    found = recorded_state(phase.value, candidate_known=False, candidate_in_force=False)
    assert found is (State.IDLE if phase in {State.SWITCH, State.PROBATION, State.COMMIT, State.ROLLBACK} else phase)
    assert recorded_state(phase.value, candidate_known=True, candidate_in_force=True) is phase


def test_a_commit_that_did_not_happen_is_not_taken_for_one() -> None:
    assert recorded_state("COMMIT", candidate_known=True, candidate_in_force=False) is State.IDLE


def test_the_diagram_in_the_documents_is_that_of_the_table() -> None:
    assert diagram.main([]) == 0


def test_a_diagram_that_was_changed_by_hand_is_noticed_and_written_again() -> None:
    page = diagram.FILE.read_text("utf-8")
    changed = page.replace("SEAL --> CANARY: sealed", "SEAL --> COMMIT: sealed")
    assert changed != page
    assert diagram.insert(changed) == page
