"""Events of several answers as those of one request."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.choices import Choices
from agent.engine.interface import FinishEvent, Generation, RejectEvent, StepEvent, TokenEvent


def ended(request: int, choice: int, text: str = "", reason: Literal["stop", "length"] = "stop") -> FinishEvent:
    return FinishEvent(request, reason, text, 7, 2, choice, choice=choice)


def test_one_answer_passes_as_it_is() -> None:
    choices = Choices()
    choices.expect(Generation(1, "anna", prompt="x"))
    events: list[StepEvent] = [TokenEvent(1, "a", 1), ended(1, 0)]
    assert choices.merge(events) is events


@given(st.permutations(range(4)), st.lists(st.text(max_size=2), min_size=4, max_size=4))
def test_a_request_ends_with_its_last_answer_and_no_text_is_lost(order: list[int], tails: list[str]) -> None:
    choices = Choices()
    choices.expect(Generation(1, "anna", prompt="x", n=4))
    found: list[StepEvent] = []
    for choice in order:
        found += choices.merge([ended(1, choice, tails[choice], "length" if choice else "stop"), ended(2, 0)])
    ends = [event for event in found if isinstance(event, FinishEvent) and event.request == 1]
    (end,) = ends
    assert found[-2:] == [end, ended(2, 0)]
    assert (end.reason, end.reasons) == ("stop", ["stop", "length", "length", "length"])
    assert (end.prompt_tokens, end.completion_tokens, end.cached_tokens) == (7, 8, 0)
    assert end.choice == order[-1]
    texts = {event.choice: event.text for event in found if isinstance(event, TokenEvent)}
    assert {**texts, end.choice: end.text} == {
        choice: tail for choice, tail in enumerate(tails) if tail or choice == end.choice
    }


def test_a_rejection_ends_all_of_them_and_says_whom_to_drop() -> None:
    choices = Choices()
    choices.expect(Generation(1, "anna", prompt="x", n=2))
    refused = RejectEvent(1, 400, "invalid_request", "too much work")
    assert choices.merge([TokenEvent(1, "a", 1), refused, TokenEvent(1, "b", 1, choice=1)]) == [
        TokenEvent(1, "a", 1),
        refused,
    ]
    assert choices.abandoned == [1]
