"""Caches as long as a sliding window that is longer than any prompt, as Gemma 3's real one of 512 is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.engine.engine_selection import open_engine
from agent.engine.genai import GenaiEngine
from agent.engine.interface import Generation
from agent.engine.kv_budget import KvBudget
from contract.bundle.footprint import kv_token_bytes
from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.errors import RequestInvalid
from packager.evaluate.check_process import Runtime
from tests.agent.engine.batched.test_batched_families import asked, assert_source_agrees, prompt_ids, tokens_of
from tests.agent.engine.driving import answer
from tests.packager.families import FAMILY_CONFIGS, build_here, make_random

WINDOW = 512
SMALL = json.dumps(
    {
        "model": {
            "type": "phi3", "context_length": 128, "vocab_size": 448, "eos_token_id": 2,
            "decoder": {
                "filename": "model.onnx", "hidden_size": 128, "head_size": 32, "num_attention_heads": 4,
                "num_hidden_layers": 2,
            },
        }
    }
).encode()  # fmt: skip


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny Gemma 3 with the window and more context than it."""
    place = tmp_path_factory.mktemp("gemma")
    config = FAMILY_CONFIGS["gemma-3"]()
    config.sliding_window, config.max_position_embeddings = WINDOW, 2048
    model = make_random(place / "source", config)
    build_here(place / "source", place / "graph", "fp32")
    return place / "graph", model


@pytest.mark.parametrize("engine", ["genai", "batched"])
def test_a_short_prompt_is_answered_as_by_the_source(gemma: tuple[Path, Any], engine: str) -> None:
    folder, model = gemma
    opened = open_engine(folder, engine=engine, threads=1)
    generation = asked(1, 0, 60, 12)
    found = tokens_of(answer(opened, generation))
    assert_source_agrees(model, prompt_ids(folder, generation), found)
    score = opened.score("the sea is", " wide")
    opened.release()
    assert score.mean_nll > 0


def test_a_request_takes_the_memory_of_the_window(gemma: tuple[Path, Any]) -> None:
    folder, _ = gemma
    config = read_genai_config((folder / CONFIG_FILE).read_bytes())
    assert config.least_cache == WINDOW
    room = KvBudget(config, kv_token_bytes(config), 10_000 * 2**20, lambda: False)
    short = Generation(request=1, client="c", prompt="x", max_tokens=4)
    assert room.length(short, 10, 14) == WINDOW
    assert room.length(short, 600, 700) == 704
    little = KvBudget(config, room.token_bytes, room.token_bytes * (WINDOW - 1), lambda: False)
    for generation in (short, Generation(request=2, client="c", prompt="x")):
        with pytest.raises(RequestInvalid, match="there is memory for 511"):
            little.length(generation, 10, 14)


def test_a_window_that_no_layer_keeps_takes_none() -> None:
    """Phi-3.5 names one of 262,144 tokens, and of no layer."""
    from msgspec.structs import replace

    facts = read_genai_config(SMALL)
    window = {"window_size": 262144, "layers": []}
    assert replace(facts, sliding_window=window).least_cache == 0
    assert replace(facts, sliding_window={**window, "layers": [0]}).least_cache == facts.context_length == 128


def test_the_batched_engine_leaves_a_window_that_has_no_room_to_the_other(gemma: tuple[Path, Any]) -> None:
    folder, _ = gemma
    config = read_genai_config((folder / CONFIG_FILE).read_bytes())
    opened = open_engine(folder, threads=1, max_bytes=600 * kv_token_bytes(config))
    assert isinstance(opened, GenaiEngine)
    assert "its window has 512" in opened.facts.why
    opened.release()


def test_the_packagers_check_has_room_for_it(gemma: tuple[Path, Any]) -> None:
    folder, _ = gemma
    assert Runtime(folder, 1).answer("the sea is", 8).tokens > 0
