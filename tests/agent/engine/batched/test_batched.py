"""What only the batched engine promises, on the real model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.engine.batched.graph import read_decoder
from agent.engine.batched.slicing import SLICE
from agent.engine.config import read_config
from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine, FinishEvent, Generation, TokenEvent
from contract.bundle.device_plan import LENGTH_GRANULE, MOST_SHARE
from contract.errors import EngineFailed
from tests.agent.engine.conformance.test_generation import ask
from tests.agent.engine.driving import Outcome, answer, record, run

STORY = "Once upon a time there was an old miller who had three sons and a cat. " * 8


def asked_by(client: str, request: int, prompt: str, **fields: object) -> Generation:
    return ask(request, prompt=prompt, client=client, **fields)


def finish_of(outcome: Outcome) -> FinishEvent:
    assert outcome.finish is not None
    return outcome.finish


def test_a_known_beginning_is_not_read_again_and_changes_nothing(batched: Engine) -> None:
    prompt = STORY + "The first son"
    cold = answer(batched, asked_by("carl", 1, prompt))
    warm = answer(batched, asked_by("carl", 2, prompt))
    assert finish_of(cold).cached_tokens == 0
    assert finish_of(warm).cached_tokens >= finish_of(warm).prompt_tokens - SLICE - 1
    assert warm.text == cold.text
    other = answer(batched, asked_by("carl", 3, STORY + "The second son"))
    assert finish_of(other).cached_tokens > 100
    assert other.text == answer(batched, asked_by("dora", 4, STORY + "The second son")).text


def test_one_client_never_profits_from_what_another_asked(batched: Engine) -> None:
    answer(batched, asked_by("emil", 1, STORY + "A secret"))
    assert finish_of(answer(batched, asked_by("frida", 2, STORY + "A secret"))).cached_tokens == 0


def test_a_beginning_is_shared_with_a_request_that_still_runs(batched: Engine) -> None:
    outcomes: dict[int, Outcome] = {}
    batched.admit(asked_by("gerd", 1, STORY, max_tokens=60))
    while not outcomes.get(1, Outcome()).tokens:
        record(batched.step(), outcomes)
    run(batched, asked_by("gerd", 2, STORY + "And so"), outcomes=outcomes)
    assert finish_of(outcomes[2]).cached_tokens > 100
    assert outcomes[2].text == answer(batched, asked_by("hans", 2, STORY + "And so")).text


def test_a_long_prompt_stops_nobody(batched: Engine) -> None:
    """Every step in which the long prompt is read gives the running request a token too."""
    outcomes: dict[int, Outcome] = {}
    batched.admit(ask(1, prompt="One, two,", max_tokens=100))
    while not outcomes.get(1, Outcome()).tokens:
        record(batched.step(), outcomes)
    batched.admit(asked_by("ida", 2, STORY + "Then"))
    while not outcomes.get(2, Outcome()).tokens:
        events = batched.step()
        assert any(isinstance(event, TokenEvent) and event.request == 1 for event in events)
        record(events, outcomes)
    run(batched, outcomes=outcomes)


def test_requests_that_come_and_go_at_any_time_get_what_they_get_alone(batched: Engine) -> None:
    prompts = ["The sea", "Count: 1 2 3", "Dear Anna,", STORY[:200], "def main():"]
    made = [
        ask(number, prompt=prompt, max_tokens=6 + number, temperature=0.9 * (number % 2), seed=number)
        for number, prompt in enumerate(prompts * 2)
    ]
    alone = {generation.request: answer(batched, generation).text for generation in made}

    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.permutations(made), st.lists(st.integers(0, 4), min_size=10, max_size=10), st.integers(0, 9))
    def holds(order: list[Generation], pauses: list[int], cancelled: int) -> None:
        outcomes: dict[int, Outcome] = {}
        for generation, pause in zip(order, pauses, strict=True):
            batched.admit(generation)
            for _ in range(pause):
                record(batched.step(), outcomes)
        record(batched.cancel(cancelled), outcomes)
        run(batched, outcomes=outcomes)
        for request, outcome in outcomes.items():
            assert outcome.text == alone[request] or (request == cancelled and alone[request].startswith(outcome.text))

    holds()


def test_little_memory_means_a_shorter_context_not_a_failure(short_bundle: Path) -> None:
    engine = open_engine(short_bundle, engine="batched", threads=2, max_bytes=40 << 20)
    assert engine.facts.slots == 1
    assert engine.facts.context_length == 512
    assert answer(engine, ask()).reason == "length"
    engine.release()
    with pytest.raises(EngineFailed, match="too little memory"):
        open_engine(short_bundle, engine="batched", threads=2, max_bytes=1 << 20)


def test_an_operator_says_how_many_run_at_once(tiny_bundle: Path) -> None:
    engine = open_engine(tiny_bundle, engine="batched", threads=1, max_bytes=64 << 20, slots=2)
    assert (engine.facts.slots, engine.facts.context_length) == (2, 512)
    for number in (1, 2, 3):
        engine.admit(ask(number, max_tokens=4, min_tokens=4))
    outcomes = run(engine)
    assert {outcome.reason for outcome in outcomes.values()} == {"length"}
    engine.release()


def test_where_the_batched_engine_has_no_memory_the_other_is_tried(tiny_bundle: Path) -> None:
    """It keeps nothing for remembered prompts, so it can do with less."""
    granule = LENGTH_GRANULE * read_decoder(tiny_bundle, read_config(tiny_bundle)).kv_bytes_per_token
    engine = open_engine(tiny_bundle, threads=1, max_bytes=granule)
    assert engine.facts.engine == "genai"
    assert engine.facts.why == "not batched: 0 MiB are too little memory for this model"
    assert answer(engine, ask(max_tokens=4)).reason == "length"
    engine.release()
    with pytest.raises(EngineFailed, match="too little memory"):
        open_engine(tiny_bundle, threads=1, max_bytes=granule - 1)


def test_where_memory_shrinks_the_next_worker_plans_for_what_is_left(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What serves already goes on as it is; the kernel may end it, and then another one is loaded."""
    token = read_decoder(tiny_bundle, read_config(tiny_bundle)).kv_bytes_per_token
    monkeypatch.setattr("agent.engine.memory.mapped_bytes", lambda folders: 0)
    left = 1 << 30
    monkeypatch.setattr("agent.engine.memory.available_memory", lambda: left)
    before = open_engine(tiny_bundle, threads=1)
    left = int(2 * LENGTH_GRANULE * token / MOST_SHARE) + 1
    after = open_engine(tiny_bundle, threads=1)
    assert (before.facts.slots, before.facts.context_length) == (8, 512)
    assert (after.facts.slots, after.facts.context_length) == (1, 2 * LENGTH_GRANULE)
    for engine in (before, after):
        assert answer(engine, ask(max_tokens=4)).reason == "length"
        engine.release()
    left = 0
    with pytest.raises(EngineFailed, match="0 MiB are too little memory for this model"):
        open_engine(tiny_bundle, threads=1)


def test_memory_does_not_grow_with_the_number_of_requests(tiny_bundle: Path) -> None:
    """Remembered prompts fill their budget; beyond it the oldest go, and nothing else stays behind."""
    engine = open_engine(tiny_bundle, engine="batched", threads=1, max_bytes=8 << 20)

    def ask_many(first: int) -> int:
        for number in range(first, first + 120):
            answer(engine, asked_by("jan", number, f"{number} " + "and it counted " * 60, max_tokens=2))
        fields = Path("/proc/self/status").read_text().split("RssAnon:")[1].split()
        return int(fields[0]) * 1024

    before = ask_many(0)
    assert ask_many(1000) - before < 4 << 20, "all prompts together are many times as much"
    engine.release()


def test_auto_says_why_it_batches_or_not(short_bundle: Path, tmp_path: Path) -> None:
    engine = open_engine(short_bundle, threads=2)
    assert engine.facts.engine == "batched"
    engine.release()
    odd = tmp_path / "odd"
    shutil.copytree(short_bundle, odd)
    config = odd / "genai_config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 30', '"num_hidden_layers": 29'))
    with pytest.raises(EngineFailed, match="30 of its 29 layers"):
        open_engine(odd, engine="batched", threads=2)
