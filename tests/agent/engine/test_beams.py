"""Beam search: the ``genai`` engine's alone; the other says where it is to be had."""

from __future__ import annotations

import pytest

from agent.engine.interface import Engine
from tests.agent.engine.conformance.test_generation import ask
from tests.agent.engine.driving import Outcome, answer, record, run

PROMPT = "The three largest cities of Italy are"


def test_beams_find_a_text_that_is_at_least_as_likely(genai: Engine) -> None:
    greedy = answer(genai, ask(prompt=PROMPT, max_tokens=10))
    beams = answer(genai, ask(prompt=PROMPT, max_tokens=10, num_beams=4))
    assert beams.finish is not None
    assert beams.finish.completion_tokens <= 10
    assert genai.score(PROMPT, beams.text).mean_nll <= genai.score(PROMPT, greedy.text).mean_nll + 1e-3
    assert answer(genai, ask(prompt=PROMPT, max_tokens=10, num_beams=4)).text == beams.text


def test_beams_and_their_neighbours_get_what_they_get_alone(genai: Engine) -> None:
    alone = [answer(genai, ask(prompt=PROMPT, num_beams=beams)).text for beams in (3, 1)]
    outcomes = run(genai, ask(1, prompt=PROMPT, num_beams=3), ask(2, prompt=PROMPT))
    assert [outcomes[1].text, outcomes[2].text] == alone


def test_a_beam_search_that_there_is_no_memory_for_is_refused(genai: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.engine.kv_budget.usable_bytes", lambda: 32 << 20)
    outcome = answer(genai, ask(prompt=PROMPT * 20, max_tokens=10, num_beams=4))
    assert outcome.refused_field == "prompt"
    assert outcome.reject is not None
    assert "in one piece need" in outcome.reject.message


def test_a_prompt_in_one_piece_is_announced(genai: Engine) -> None:
    outcomes: dict[int, Outcome] = {}
    genai.admit(ask(1, prompt=PROMPT, max_tokens=4, num_beams=2))
    genai.admit(ask(2, prompt=PROMPT, max_tokens=4))
    announced = []
    while genai.busy:
        announced.append(genai.next_read)
        record(genai.step(), outcomes)
    assert outcomes[1].finish is not None
    assert announced[0] == outcomes[1].finish.prompt_tokens
    assert set(announced[1:]) == {0}


def test_a_cancelled_beam_search_frees_its_slot(genai: Engine) -> None:
    outcomes: dict[int, Outcome] = {}
    genai.admit(ask(1, prompt=PROMPT, max_tokens=200, num_beams=4))
    for _ in range(3):
        record(genai.step(), outcomes)
    record(genai.cancel(1), outcomes)
    assert outcomes[1].reason == "cancelled"
    assert not genai.busy


def test_the_batched_engine_says_where_beam_search_is(batched: Engine) -> None:
    outcome = answer(batched, ask(num_beams=2))
    assert outcome.refused_field == "num_beams"
    assert outcome.reject is not None
    assert 'engine = "genai"' in outcome.reject.message
