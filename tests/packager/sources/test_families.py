"""Every family: the fp32 build computes what the source does, also past windows and rope's switch; int4 generates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.errors import BuildRefused
from packager.build.plan import BuildPlan, builder_options
from packager.evaluate.conformance import compare
from packager.evaluate.reference_process import find_rope
from packager.graph.facts import read_back
from packager.graph.rope_check import compare_rope
from packager.sources.checkpoint import inspect_checkpoint
from packager.sources.families import family_of, offered_architectures
from tests.packager.families import (
    CONTEXT,
    FAMILY_CONFIGS,
    ORIGINAL_CONTEXT,
    WINDOW,
    build_here,
    difference,
    generate,
    make_random,
    runtime,
    sample_ids,
    source_logits,
)

LENGTHS = (WINDOW - 10, ORIGINAL_CONTEXT - 1, ORIGINAL_CONTEXT, CONTEXT - 20)
"""Before any window's end; around rope's switch, past every window; well past both."""


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_family(family: str, tmp_path: Path) -> None:
    source = make_random(tmp_path / "source", FAMILY_CONFIGS[family]())
    assert inspect_checkpoint(tmp_path / "source").family in {family_of(name) for name in offered_architectures()}

    plan = BuildPlan("source", "tiny", "1.0.0", precision="fp32")
    report = build_here(tmp_path / "source", tmp_path / "fp32", "fp32")
    config, graph = read_back(tmp_path / "fp32")
    assert compare(plan, report.config, config, graph) == []
    assert compare_rope(find_rope(source.config), config, tmp_path / "fp32") == []
    logits = runtime(tmp_path / "fp32")
    for length in LENGTHS:
        ids = sample_ids(length)
        furthest, cosine = difference(logits(ids), source_logits(source, ids))
        assert furthest <= 2e-4, f"{length} tokens: {furthest} apart"
        assert cosine >= 0.9999

    plan = BuildPlan("source", "tiny", "1.0.0")
    report = build_here(tmp_path / "source", tmp_path / "int4", "int4", options=tuple(builder_options(plan)))
    config, graph = read_back(tmp_path / "int4")
    assert compare(plan, report.config, config, graph) == []
    assert generate(tmp_path / "int4", 8)


@pytest.mark.parametrize("architecture", ["PhiMoEForCausalLM", "Qwen3MoeForCausalLM", "Olmo2ForCausalLM"])
def test_a_family_that_the_builder_lacks_is_refused_by_name_before_its_weights_are_read(
    tmp_path: Path, architecture: str
) -> None:
    config: dict[str, Any] = {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BuildRefused) as caught:
        inspect_checkpoint(tmp_path)
    assert architecture in caught.value.message
    assert all(family in caught.value.message for family in ("phi3", "gemma3", "mistral", "llama", "qwen3", "smollm3"))
