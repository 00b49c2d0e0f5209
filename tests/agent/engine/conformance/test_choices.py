"""Several answers to one prompt: told apart by number, ended together, each as if it had been asked for alone."""

from __future__ import annotations

from msgspec.structs import replace

from agent.engine.interface import Engine, FinishEvent, Generation, StepEvent
from tests.agent.engine.driving import Outcome, answer, record, run

PROMPT = "Once upon a time there was a small robot that lived in a big city and liked to paint"


def ask(request: int = 1, **fields: object) -> Generation:
    wanted: dict[str, object] = {"client": "anna", "prompt": PROMPT, "max_tokens": 8, "temperature": 1.2, "seed": 5}
    return Generation(request, **{**wanted, **fields})  # type: ignore[arg-type]


def texts(outcome: Outcome) -> list[str]:
    """The text of each answer, in the order of their numbers."""
    assert outcome.finish is not None, outcome.reject
    found = [""] * len(outcome.finish.reasons)
    for event in outcome.tokens:
        found[event.choice] += event.text
    found[outcome.finish.choice] += outcome.finish.text
    return found


def test_each_answer_is_its_own_and_the_first_is_the_one_that_is_given_alone(engine: Engine) -> None:
    alone = answer(engine, ask()).text
    outcome = answer(engine, ask(n=3))
    found = texts(outcome)
    assert found[0] == alone
    assert len(set(found)) == 3
    assert outcome.finish is not None
    assert outcome.finish.reasons == ["length"] * 3
    assert outcome.finish.completion_tokens == 24
    for choice in range(3):
        assert [each.tokens for each in outcome.tokens if each.choice == choice and each.text][-1] == 8


def test_a_seed_repeats_all_of_them_whatever_else_runs(engine: Engine) -> None:
    once = texts(answer(engine, ask(n=3)))
    together = run(engine, ask(1, n=3), ask(2, seed=9), ask(3, n=2, seed=11, temperature=0.9))
    assert texts(together[1]) == once


def test_more_answers_than_slots_all_come(engine: Engine) -> None:
    count = engine.facts.slots + 3
    found = texts(answer(engine, ask(n=count, max_tokens=3)))
    assert len(found) == count
    assert all(found)


def test_the_prompt_is_read_once(engine: Engine) -> None:
    """As many steps as for one answer, where they run side by side; else no step but those of the answers."""
    long = PROMPT * 4

    def steps(n: int) -> int:
        engine.admit(ask(prompt=f"{n} {long}", n=n, max_tokens=2))
        count, outcomes = 0, dict[int, Outcome]()
        while engine.busy:
            record(engine.step(), outcomes)
            count += 1
        assert outcomes[1].finish is not None
        assert outcomes[1].finish.prompt_tokens < 512
        return count

    assert steps(3) <= steps(1) + 2 * 2


def test_stops_grammars_and_limits_hold_for_each(engine: Engine) -> None:
    outcome = answer(engine, ask(n=2, stops=("e",), max_tokens=40))
    assert not any("e" in text for text in texts(outcome))


def test_cancel_ends_all_of_them_with_their_texts(engine: Engine) -> None:
    engine.admit(ask(n=3, max_tokens=200, min_tokens=200))
    outcomes: dict[int, Outcome] = {}
    for _ in range(40):
        record(engine.step(), outcomes)
    ends = engine.cancel(1)
    record(ends, outcomes)
    last = ends[-1]
    assert isinstance(last, FinishEvent)
    assert last.reasons == ["cancelled"] * 3
    assert not engine.busy
    assert engine.cancel(1) == []


def test_an_update_reaches_all_of_them(engine: Engine) -> None:
    engine.admit(ask(n=2, max_tokens=100, min_tokens=100))
    outcomes: dict[int, Outcome] = {}
    events: list[StepEvent] = []
    while not events:
        events = engine.step()
        record(events, outcomes)
    assert engine.update(1, {"max_tokens": 6})
    while engine.busy:
        record(engine.step(), outcomes)
    assert outcomes[1].finish is not None
    assert outcomes[1].finish.reasons == ["length", "length"]
    assert outcomes[1].finish.completion_tokens == 12


def test_log_probabilities_come_with_their_answer(engine: Engine) -> None:
    outcome = answer(engine, ask(n=2, logprobs=True))
    for choice in (0, 1):
        assert sum(len(event.logprobs or []) for event in outcome.tokens if event.choice == choice) == 8


def test_what_is_refused_is_refused_once(engine: Engine) -> None:
    outcome = answer(engine, replace(ask(n=3), prompt="x" * 9000))
    assert outcome.reject is not None


def test_no_answer_is_longer_than_the_limit_whatever_is_asked_for(engine: Engine) -> None:
    for asked in (None, 100):
        outcome = answer(engine, ask(max_tokens_limit=5, min_tokens=50, max_tokens=asked))
        assert outcome.finish is not None
        assert (outcome.reason, outcome.finish.completion_tokens) == ("length", 5)
    engine.admit(ask(max_tokens=3, max_tokens_limit=5, min_tokens=50))
    outcomes: dict[int, Outcome] = {}
    assert engine.update(1, {"max_tokens": 100})
    while engine.busy:
        record(engine.step(), outcomes)
    assert outcomes[1].finish is not None
    assert outcomes[1].finish.completion_tokens == 5
