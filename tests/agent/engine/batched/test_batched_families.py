"""Graphs with sliding windows, two sets of rope factors, and INT8 keys and values, against what they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine, Generation
from tests.agent.engine.conformance.test_generation import ask
from tests.agent.engine.driving import Outcome, answer, record, run
from tests.packager.families import BASE, FAMILY_CONFIGS, ORIGINAL_CONTEXT, build_here, make_random, source_logits

WINDOWED = ["mistral", "phi-3", "gemma-2", "gemma-3", "qwen-2-window"]
"""Their windows are 32 or 40 tokens of a context of 128."""

SWITCHING = ["phi-3.5-mini", "phi-4-mini"]
END = BASE["eos_token_id"]
WORDS = "the sea is wide and blue, and it never sleeps; " * 8
Build = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A tiny random model of a family and its graph in fp32, made once."""
    made: dict[str, tuple[Path, Any]] = {}

    def find(family: str) -> tuple[Path, Any]:
        if family not in made:
            place = tmp_path_factory.mktemp(family)
            model = make_random(place / "source", FAMILY_CONFIGS[family]())
            build_here(place / "source", place / "graph", "fp32")
            made[family] = (place / "graph", model)
        return made[family]

    return find


def asked(request: int, skip: int, length: int, tokens: int, **fields: Any) -> Generation:
    """So many characters of a text and exactly so many tokens of an answer, their ids among the log-probabilities."""
    prompt = WORDS[skip : skip + length]
    given = {"max_tokens": tokens, "min_tokens": tokens, "logprobs": True, **fields}
    return ask(request, prompt=prompt, **given)


def tokens_of(outcome: Outcome) -> list[int]:
    assert outcome.finish is not None, outcome.reject
    return [entry["id"] for event in outcome.tokens for entry in event.logprobs or []]


def prompt_ids(folder: Path, generation: Generation) -> list[int]:
    import onnxruntime_genai

    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Config(str(folder)))
    return [int(token) for token in tokenizer.encode(generation.prompt)]


def assert_source_agrees(model: Any, ids: list[int], chosen: list[int]) -> None:
    """Greedy choices of the source, which reads everything at once; equals within rounding may be either."""
    rows = source_logits(model, np.array([*ids, *chosen], dtype=np.int32))
    for place, token in enumerate(chosen, len(ids) - 1):
        row = rows[place].copy()
        row[END] = -np.inf
        assert row[token] >= row.max() - 1e-3, f"token {place + 1 - len(ids)}"


def assert_alone_and_together_alike(engine: Engine, generations: list[Generation]) -> dict[int, list[int]]:
    """Everybody at once and one after the other, known beginnings and new ones: the same tokens."""
    alone = {generation.request: tokens_of(answer(engine, generation)) for generation in generations}
    outcomes: dict[int, Outcome] = {}
    for generation in generations:
        engine.admit(generation)
        for _ in range(3):
            record(engine.step(), outcomes)
    run(engine, outcomes=outcomes)
    assert {request: tokens_of(outcome) for request, outcome in outcomes.items()} == alone
    return alone


@pytest.mark.parametrize("family", WINDOWED)
def test_sliding_windows_hold_past_their_edge(build: Build, family: str) -> None:
    folder, model = build(family)
    engine = open_engine(folder, threads=2, reproducible=True)
    assert engine.facts.engine == "batched", engine.facts.why
    generations = [asked(1, 0, 150, 50), asked(2, 5, 30, 70), asked(3, 9, 90, 30), asked(4, 0, 160, 20)]
    found = assert_alone_and_together_alike(engine, generations)
    engine.release()
    for generation in generations:
        ids = prompt_ids(folder, generation)
        assert len(ids) + len(found[generation.request]) > 45, "it has to pass the window"
        assert_source_agrees(model, ids, found[generation.request])


@pytest.mark.parametrize("family", SWITCHING)
def test_a_request_keeps_its_rope_factors_from_beginning_to_end(build: Build, family: str) -> None:
    """Short and long ones side by side, of one client with the same beginnings; long ones cross the switch."""
    folder, model = build(family)
    engine = open_engine(folder, threads=2, reproducible=True)
    assert engine.facts.engine == "batched", engine.facts.why
    short = [asked(1, 0, 60, 10), asked(3, 3, 40, 20), asked(5, 0, 60, 12)]
    long = [asked(2, 0, 60, 70), asked(4, 3, 40, 80), asked(6, 0, 200, 30)]
    found = assert_alone_and_together_alike(engine, [part for pair in zip(short, long, strict=True) for part in pair])
    engine.release()
    for generation in [*short, *long]:
        ids, chosen = prompt_ids(folder, generation), found[generation.request]
        # The source chooses by the length of what it reads at once, so it uses the same factors for all of it.
        assert (len(ids) + len(chosen) > ORIGINAL_CONTEXT) == (generation in long)
        assert_source_agrees(model, ids, chosen)


def test_a_short_request_is_not_lengthened_beyond_the_switch(build: Build) -> None:
    folder, _ = build("phi-3.5-mini")
    engine = open_engine(folder, threads=2)
    outcomes: dict[int, Outcome] = {}
    generation = asked(1, 0, 40, 5)
    engine.admit(generation)
    while not outcomes.get(1, Outcome()).tokens:
        record(engine.step(), outcomes)
    assert engine.update(1, {"max_tokens": 100, "min_tokens": 100})
    run(engine, outcomes=outcomes)
    engine.release()
    assert outcomes[1].reason == "length"
    # The last token is never read.
    assert len(prompt_ids(folder, generation)) + len(outcomes[1].tokens) == ORIGINAL_CONTEXT + 1


def test_a_graph_that_switches_on_something_else_goes_to_the_other_engine(build: Build, tmp_path: Path) -> None:
    """The switch is said to lie elsewhere than where it is: the mask that the engine would pin changes nothing."""
    import onnx

    folder, _ = build("phi-3.5-mini")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Greater":
            node.op_type = "GreaterOrEqual"
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in folder.iterdir():
        if file.name != "model.onnx":
            (odd / file.name).hardlink_to(file)
    onnx.save(model, str(odd / "model.onnx"))
    engine = open_engine(odd, threads=2)
    assert engine.facts.engine == "genai"
    assert "switches on something" in engine.facts.why
    engine.release()


def test_keys_and_values_in_int8_serve_several_at_once(build: Build, tmp_path: Path) -> None:
    """The other engine with the same graph is the reference: INT8 is close to the source, not equal to it."""
    plain, _ = build("mistral-full")
    scales = {"scales": {name: [[0.02] * 64] * BASE["num_hidden_layers"] for name in ("k_scales", "v_scales")}}
    (tmp_path / "scales.json").write_text(json.dumps(scales))
    options = ("kv_cache_quant_scheme=int8_per_channel", f"kv_cache_scale_file={tmp_path / 'scales.json'}")
    build_here(plain.parent / "source", tmp_path / "graph", "fp32", options=options)
    engine, other = (
        open_engine(tmp_path / "graph", engine=name, threads=2, reproducible=True) for name in ("auto", "genai")
    )
    assert engine.facts.engine == "batched", engine.facts.why
    generations = [asked(1, 0, 150, 30), asked(2, 5, 30, 40), asked(3, 0, 160, 20)]
    found = assert_alone_and_together_alike(engine, generations)
    for generation in generations:
        assert found[generation.request] == tokens_of(answer(other, generation))
    engine.release()
    other.release()
