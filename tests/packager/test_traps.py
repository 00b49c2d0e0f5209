"""The builder's traps, sprung on purpose: the proof or the load catches each before a manifest is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import BuildRefused
from packager.build.plan import OFFERED, BuildPlan, builder_options
from packager.evaluate.check_process import Runtime
from packager.evaluate.conformance import compare
from packager.graph.facts import read_back
from packager.graph.not_executed import not_executed_result
from tests.packager.families import BASE, build_here, generate, make_random

PLAIN = ("block_size=32", "accuracy_level=4")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose lm_head is its embedding."""
    from transformers import LlamaConfig

    directory = tmp_path_factory.mktemp("tied")
    make_random(directory, LlamaConfig(**{**BASE, "num_hidden_layers": 2, "tie_word_embeddings": True}))
    return directory


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("int4_block_size=64", "int4_accuracy_level=4"), "blocks of 32 instead of 64"),
        (("block_sise=64", "accuracy_level=4"), "blocks of 32 instead of 64"),
        (("block_size=64", "accuracy_level=4", "shared_embeddings=false"), "the embedding is int8 instead of int4"),
    ],
)
def test_ignored_and_harmful_options(tied: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    report = build_here(tied, tmp_path, "int4", options=options)
    plan = BuildPlan("source", "tiny", "1.0.0", block_size=64)
    differences = "; ".join(compare(plan, report.config, *read_back(tmp_path)))
    assert words in differences


@pytest.mark.parametrize("option", ["is_symmetric=false", "matmul_mixed_precision=last_matmul:int8"])
def test_graphs_that_do_not_load(tied: Path, tmp_path: Path, option: str) -> None:
    build_here(tied, tmp_path, "int4", options=(*PLAIN, option))
    with pytest.raises(BuildRefused, match="does not load"):
        Runtime(tmp_path, 1)


@pytest.mark.parametrize(
    ("ep", "precision"), [(ep, precision) for ep, offered in OFFERED.items() for precision in offered]
)
def test_every_offered_combination_is_what_it_says(tied: Path, tmp_path: Path, ep: str, precision: str) -> None:
    plan = BuildPlan("source", "tiny", "1.0.0", precision=precision, ep=ep)
    report = build_here(tied, tmp_path, precision, ep, tuple(builder_options(plan)))
    config, graph = read_back(tmp_path)
    assert compare(plan, report.config, config, graph) == []
    if ep == "cpu":
        assert generate(tmp_path, 4)
    else:
        assert not_executed_result(graph).peak_rss_bytes == graph.tensor_bytes > 0
