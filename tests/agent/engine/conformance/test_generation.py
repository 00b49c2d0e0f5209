"""What every engine owes a request, whatever runs underneath."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent.engine.interface import Engine, Generation
from tests.agent.engine.driving import answer, run

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def ask(request: int = 1, **fields: object) -> Generation:
    wanted: dict[str, object] = {"client": "anna", "messages": QUESTION, "max_tokens": 12, **fields}
    if "prompt" in wanted:
        wanted["messages"] = None
    return Generation(request, **wanted)  # type: ignore[arg-type]


def test_the_facts_are_filled(engine: Engine) -> None:
    facts = engine.facts
    assert facts.slots >= 1
    assert facts.context_length == 512
    assert facts.vocab_size > 200
    assert facts.engine and facts.why


def test_an_answer_comes_in_pieces_and_ends_once(engine: Engine) -> None:
    outcome = answer(engine, ask())
    assert outcome.reason == "length"
    assert outcome.finish is not None
    assert outcome.finish.completion_tokens == len(outcome.tokens) == 12
    assert [event.tokens for event in outcome.tokens] == list(range(1, 13))
    assert outcome.finish.prompt_tokens > 7
    assert outcome.text.strip()


def test_one_token_is_one_token(engine: Engine) -> None:
    outcome = answer(engine, ask(max_tokens=1))
    assert len(outcome.tokens) == 1
    assert outcome.reason == "length"


def test_greedy_answers_are_repeatable(engine: Engine) -> None:
    assert answer(engine, ask()).text == answer(engine, ask()).text


def test_a_seed_fixes_the_text_and_another_changes_it(engine: Engine) -> None:
    texts = [answer(engine, ask(temperature=1.5, seed=seed)).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_what_a_request_gets_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    requests = [
        ask(1),
        ask(2, temperature=1.0, seed=7, top_p=0.9),
        ask(3, prompt="Once upon a time there was a small robot that", temperature=0.8, seed=9, top_k=20),
        ask(4, prompt="1 2 3 4", max_tokens=25),
        ask(5, prompt="One, two, three, four, five, six, " * 12, max_tokens=5),
        ask(6, temperature=1.2, seed=11, min_p=0.05),
    ]
    together = run(engine, *requests)
    for request in requests:
        assert together[request.request].text == answer(engine, request).text, request


def test_more_requests_than_slots_are_all_answered_in_order_of_arrival(engine: Engine) -> None:
    requests = [ask(number, max_tokens=3) for number in range(engine.facts.slots * 2 + 1)]
    first: list[int] = []
    for request in requests:
        engine.admit(request)
    while engine.busy:
        for event in engine.step():
            if event.request not in first:
                first.append(event.request)
    assert first == [request.request for request in requests]


def test_top_k_of_one_and_a_tiny_nucleus_are_greedy(engine: Engine) -> None:
    greedy = answer(engine, ask()).text
    assert answer(engine, ask(temperature=1.0, seed=1, top_k=1)).text == greedy
    assert answer(engine, ask(temperature=1.0, seed=1, top_p=1e-6)).text == greedy
    assert answer(engine, ask(temperature=1.0, seed=1, min_p=1.0)).text == greedy


def test_a_bias_decides_the_token(engine: Engine) -> None:
    outcome = answer(engine, ask(prompt="abc", logit_bias={65: 1000.0}, max_tokens=4))
    pieces = {event.text for event in outcome.tokens}
    assert len(pieces) == 1
    assert len(outcome.text) == 4 * len(next(iter(pieces)))


def test_no_ngram_is_repeated(engine: Engine) -> None:
    biased = {65: 1000.0, 66: 900.0}
    free = answer(engine, ask(prompt="abc", logit_bias=biased, max_tokens=6))
    held = answer(engine, ask(prompt="abc", logit_bias=biased, max_tokens=6, no_repeat_ngram_size=2))
    pairs = list(zip(held.tokens, held.tokens[1:], strict=False))
    assert len({(one.text, two.text) for one, two in pairs}) == len(pairs)
    assert held.text != free.text


def test_a_repetition_penalty_changes_a_repetitive_answer(engine: Engine) -> None:
    free = answer(engine, ask(prompt="a a a a a a", max_tokens=16))
    held = answer(engine, ask(prompt="a a a a a a", max_tokens=16, repetition_penalty=5.0))
    assert free.text != held.text


def test_a_frequency_penalty_ends_a_repetition_and_a_presence_penalty_weighs_once(engine: Engine) -> None:
    biased = ask(prompt="abc", logit_bias={65: 100.0, 66: 85.0}, max_tokens=24)
    free, present, frequent = (
        [event.text for event in answer(engine, asked).tokens]
        for asked in (biased, replace(biased, presence_penalty=2.0), replace(biased, frequency_penalty=2.0))
    )
    assert len(set(free)) == 1
    assert present == free, "so far ahead, once does not matter"
    assert frequent[0] == free[0], "nothing was generated yet"
    assert len(set(frequent)) == 2, "every use was paid for"


def test_log_probabilities_belong_to_the_tokens(engine: Engine) -> None:
    outcome = answer(engine, ask(logprobs=True, top_logprobs=3))
    for event in outcome.tokens:
        assert event.logprobs is not None
        (entry,) = event.logprobs
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
        for named in (entry, *entry["top_logprobs"]):
            whole = "\ufffd" not in named["token"]
            assert not whole or bytes(named["bytes"]).decode().removeprefix(" ") == named["token"].removeprefix(" ")
        assert entry["top_logprobs"][0]["id"] == entry["id"], "greedy takes the most probable"


def test_min_tokens_holds_the_end_back(engine: Engine) -> None:
    end = 257 if engine.facts.engine == "stand-in" else 2
    eager = ask(logit_bias={end: 1000.0})
    at_once = answer(engine, eager)
    assert (at_once.reason, at_once.text) == ("stop", "")
    held = answer(engine, replace(eager, min_tokens=5))
    assert held.finish is not None
    assert (held.reason, held.finish.completion_tokens) == ("stop", 5)


@pytest.mark.parametrize("width", [1, 2, 5, 9])
def test_a_stop_string_ends_the_answer_right_before_it(engine: Engine, width: int) -> None:
    whole = answer(engine, ask(max_tokens=12)).text
    for start in range(0, len(whole) - width, 7):
        stop = whole[start : start + width]
        outcome = answer(engine, ask(max_tokens=12, stops=(stop, "never in there")))
        assert outcome.reason == "stop"
        assert outcome.text == whole[: whole.index(stop)]


def test_a_stop_string_that_never_completes_costs_nothing(engine: Engine) -> None:
    whole = answer(engine, ask()).text
    assert answer(engine, ask(stops=(whole[-3:] + "~~~", "zzzzzz"))).text == whole
