"""Plans: what the builder offers, under the names that work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contract.errors import BuildRefused, BundleRefused, UsageError
from packager.build.plan import OFFERED, QUANTIZERS, BuildPlan, builder_options, check_plan
from packager.sources.families import (
    NOT_HERE,
    TEXT_OF,
    check_architecture,
    family_of,
    known_architectures,
    offered_architectures,
)

PLAN = BuildPlan("source", "name", "1.0.0")


def plan(**changes: Any) -> BuildPlan:
    return msgspec.structs.replace(PLAN, **changes)


def test_options_have_no_prefix_because_prefixed_ones_are_ignored() -> None:
    for quantizer in QUANTIZERS:
        options = builder_options(plan(quantizer=quantizer, block_size=64, accuracy_level=1))
        assert {"block_size=64", "accuracy_level=1"} < set(options) | {""}
        assert not any(option.startswith("int4_") for option in options)


def test_plain_precisions_have_no_quantisation_options() -> None:
    assert builder_options(plan(precision="fp32")) == []


@pytest.mark.parametrize(
    ("ep", "precision"), [(ep, precision) for ep, offered in OFFERED.items() for precision in offered]
)
def test_every_offered_combination_passes(ep: str, precision: str) -> None:
    assert check_plan(plan(ep=ep, precision=precision)).ep == ep


def test_a_combination_that_is_not_offered_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="int4, int8, fp32"):
        check_plan(plan(precision="fp16"))


def test_a_misspelt_option_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(UsageError, match="did you mean k-quant"):
        check_plan(plan(quantizer="kquant"))
    with pytest.raises(UsageError, match="choose one of cpu"):
        check_plan(plan(ep="abacus"))


@pytest.mark.parametrize(
    "changes",
    [{"block_size": 33}, {"accuracy_level": 5}, {"epoch": -1}, {"quantizer": "k-quant", "precision": "int8"}],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_plan(plan(**changes))


@pytest.mark.parametrize("changes", [{"ep": "dml"}, {"ep": "webgpu"}, {"precision": "fp32"}])
def test_an_int8_cache_is_refused_where_the_runtime_has_none(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--kv int8 is offered with int4 and int8 weights for cpu and cuda"):
        check_plan(plan(kv="int8", **changes))
    assert check_plan(plan(kv="int8", ep="cuda")).kv == "int8"
    with pytest.raises(UsageError, match="did you mean int8"):
        check_plan(plan(kv="int-8"))


@pytest.mark.parametrize("changes", [{"name": "Über"}, {"version": "1.0"}])
def test_names_and_versions_are_checked_before_anything_is_built(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleRefused):
        check_plan(plan(**changes))


def test_architectures_are_those_of_the_builders_own_branches() -> None:
    offered = offered_architectures()
    assert {"LlamaForCausalLM", "Phi3ForCausalLM", "Gemma3ForCausalLM", "SmolLM3ForCausalLM"} <= offered
    assert known_architectures() >= NOT_HERE.keys() | TEXT_OF.keys() | {"WhisperForConditionalGeneration"}
    assert not offered & (NOT_HERE.keys() | TEXT_OF.keys() | {"WhisperForConditionalGeneration"})
    names = {family_of(name) for name in offered}
    assert {"llama", "phi3", "gemma3", "smollm3", "gpt-oss", "ernie", "hunyuan", "internlm2", "chatglm"} <= names


@pytest.mark.parametrize("name", sorted(NOT_HERE))
def test_an_architecture_that_is_not_offered_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(BuildRefused, match=NOT_HERE[name]):
        check_architecture(name)


def test_the_offer_is_the_builders_own() -> None:
    import onnxruntime_genai

    source = (Path(onnxruntime_genai.__file__).parent / "models" / "builder.py").read_text("utf-8")
    [line] = re.findall(r"Valid precision \+ execution provider combinations are: ([^\"]*)", source)
    pairs = {tuple(pair.lower().split()) for pair in line.split(", ") if "TRT" not in pair}
    assert pairs == {(precision, ep) for ep, offered in OFFERED.items() for precision in offered}
