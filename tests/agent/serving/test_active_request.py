"""The life of a request is its table: whatever happens in whatever order, nothing else is possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serving.active_request import TRANSITIONS, ActiveRequest, IllegalStep, State, Step, StreamState
from agent.serving.scheduler import Scheduler
from agent.serving.settings import ServingSettings
from agent.state.result_store import Key
from contract.mqtt.requests import GenerateRequest


def new_request(name: str = "q") -> ActiveRequest:
    return Scheduler(ServingSettings()).new_request(Key("c", name), GenerateRequest(prompt="x"), None, 0.0)


@given(st.lists(st.sampled_from(Step), max_size=30))
def test_a_walk_follows_the_table_and_an_illegal_step_changes_nothing(steps: list[Step]) -> None:
    request = new_request()
    completed = 0
    for step in steps:
        request.stream = StreamState.OPEN
        before, attempt = request.state, request.attempt
        after = TRANSITIONS.get((before, step))
        if after is None:
            with pytest.raises(IllegalStep, match=f"{before.value} cannot {step.value}"):
                request.advance(step)
            assert (request.state, request.attempt, request.stream) == (before, attempt, StreamState.OPEN)
            continue
        request.advance(step)
        completed += step is Step.COMPLETE
        assert request.state is after
        assert request.attempt == attempt + (step is Step.REQUEUE)
        assert request.stream is (StreamState.CLOSED if step is Step.REQUEUE else StreamState.OPEN)
    assert completed == request.completed, "its result is decided once"


def test_every_state_leads_to_the_end_and_nothing_leads_from_there() -> None:
    ends = {State.DONE}
    for _ in State:
        ends |= {before for (before, _), after in TRANSITIONS.items() if after in ends}
    assert ends == set(State)
    assert {after for (_, _), after in TRANSITIONS.items()} == set(State)
    assert {step for _, step in TRANSITIONS} == set(Step)
    assert not [step for before, step in TRANSITIONS if before is State.DONE]


def test_only_one_way_leads_to_a_result() -> None:
    """So that a request has one: whoever decides it has to complete it, and that works once."""
    assert {step for (_, step), after in TRANSITIONS.items() if after is State.COMPLETING} == {Step.COMPLETE}
    assert {before for (before, step) in TRANSITIONS if step is Step.COMPLETE} == {
        State.QUEUED,
        State.RUNNING,
        State.CANCELLING,
    }
