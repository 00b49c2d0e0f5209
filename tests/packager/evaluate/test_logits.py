"""Two layers of a checkpoint, run by transformers and as the built graph: equal, and a difference is a refusal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from contract.errors import BuildRefused
from packager.evaluate import logits, logits_process
from packager.evaluate.jobs import LOGITS, LogitsJob, LogitsResult
from packager.evaluate.logits import LogitsProof, Unaffordable, compare_logits, compare_workarounds, find_boundaries
from packager.evaluate.logits_process import compare, run_graph, run_source
from packager.graph.truncation import choose_layers, truncate_config, truncate_name
from packager.sources.checkpoint import inspect_checkpoint
from packager.subprocess_job import Reporter, Task
from tests.packager.families import FAMILY_CONFIGS, build_here, make_random, unmended_afterwards
from tests.packager.published import PUBLISHED, write_layout
from tests.packager.sources.test_published import reference_of
from tests.packager.sources.test_sources import quantise


@pytest.fixture(autouse=True)
def child_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process does, in this one."""

    def run(task: Task[Any, Any], job: LogitsJob, log: Path, **more: Any) -> Any:
        assert task is LOGITS
        with unmended_afterwards():
            return compare(job, Reporter(os.open(os.devnull, os.O_WRONLY)))

    monkeypatch.setattr(logits, "run_child", run)


def shown(source: Path, tmp_path: Path, **more: Any) -> LogitsProof | Unaffordable:
    return compare_logits(
        inspect_checkpoint(source),
        "0" * 64,
        reference_of(source),
        cache=tmp_path / "cache",
        log=tmp_path / "log",
        **more,
    )


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build as without the workaround ``name``."""

    def skip(job: LogitsJob, reporter: Reporter) -> LogitsResult:
        return whole(replace(job, skip=name), reporter)

    whole = compare
    monkeypatch.setitem(globals(), "compare", skip)


class TestTruncation:
    @pytest.mark.parametrize(
        ("config", "layers"),
        [
            ({"num_hidden_layers": 26, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4
              + ["sliding_attention"] * 2}, [0, 5]),
            ({"num_hidden_layers": 36, "layer_types": ["full_attention"] * 36, "no_rope_layers": [1, 1, 1, 0] * 9},
             [0, 3]),
            ({"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}, [0, 1]),
            ({"num_hidden_layers": 32, "layer_types": None}, [0, 1]),
            ({"num_hidden_layers": 1}, [0]),
        ],
    )  # fmt: skip
    def test_a_layer_of_every_kind_stays_and_two_at_least(self, config: dict[str, Any], layers: list[int]) -> None:
        assert choose_layers(config) == layers

    def test_what_is_said_of_each_layer_is_said_of_those(self) -> None:
        config = {"num_hidden_layers": 4, "layer_types": ["a", "a", "a", "b"], "no_rope_layers": [1, 1, 1, 0]}
        raw = {"num_hidden_layers": 4, "sliding_window_pattern": 4, "eos_token_id": [1, 2, 3, 4]}
        assert truncate_config(raw, config, [0, 3]) == {
            "num_hidden_layers": 2, "layer_types": ["a", "b"], "no_rope_layers": [1, 0], "eos_token_id": [1, 2, 3, 4],
        }  # fmt: skip

    def test_names(self) -> None:
        assert truncate_name("model.layers.5.mlp.up_proj.weight", [0, 5]) == "model.layers.1.mlp.up_proj.weight"
        assert truncate_name("model.layers.4.mlp.up_proj.weight", [0, 5]) is None
        assert truncate_name("lm_head.weight", [0, 5]) == "lm_head.weight"


def test_boundaries() -> None:
    phi = {"max_position_embeddings": 131072, "sliding_window": 262144,
           "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}}  # fmt: skip
    assert find_boundaries(phi) == [4096]
    assert find_boundaries({"max_position_embeddings": 32768, "sliding_window": 4096}) == [4096]
    qwen = {"max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False}
    assert find_boundaries(qwen) == find_boundaries({"max_position_embeddings": 4096, "sliding_window": 4096}) == []


@pytest.mark.parametrize("name", ["gemma-3-270m", "phi-3.5-mini", "mistral-7b-v0.1"])
def test_they_are_the_sources(name: str, tmp_path: Path) -> None:
    proof = shown(write_layout(tmp_path / "source", PUBLISHED[name]), tmp_path)
    assert isinstance(proof, LogitsProof)
    assert proof.boundaries == [512 if "gemma" in name else 4096]
    assert proof.layers == ([0, 5] if "gemma" in name else [0, 1])
    assert proof.furthest < 2e-5 * proof.spread
    assert proof.own_type == "bfloat16"
    assert proof.own_furthest is not None
    assert proof.own_rounding is not None
    assert proof.own_furthest < 1.01 * proof.own_rounding
    assert f"also beyond {proof.boundaries[0]} positions" in str(proof)
    assert proof.describe()["spread"] > 0


@pytest.mark.parametrize(("name", "method"), [("qwen2.5", "gptq"), ("gemma", "awq")])
def test_codes_of_a_quantised_checkpoint_are_read_as_they_are_meant(name: str, method: str, tmp_path: Path) -> None:
    source = write_layout(tmp_path / "source", PUBLISHED[name])
    quantise(source, method)
    proof = shown(source, tmp_path)
    assert isinstance(proof, LogitsProof)
    assert proof.furthest < 2e-5 * proof.spread


class TestRefused:
    def test_rounded_norms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A Gemma in bfloat16 as the builder alone makes it."""
        without("gemma-rounding", monkeypatch)
        with pytest.raises(
            BuildRefused, match="layers 0 and 1 of the source alone, in fp32, the graph's logits are off"
        ):
            shown(write_layout(tmp_path / "source", PUBLISHED["gemma"]), tmp_path)

    def test_a_window_that_the_graph_lacks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing shows before the window's end at 4096."""
        without("dropped-window", monkeypatch)
        source = write_layout(tmp_path / "source", PUBLISHED["mistral-7b-v0.1"])
        with pytest.raises(BuildRefused, match="is no rounding"):
            shown(source, tmp_path)
        monkeypatch.setattr(logits, "find_boundaries", lambda config: [])
        assert isinstance(shown(source, tmp_path), LogitsProof)

    def test_other_factors_beyond_the_switch(self, tmp_path: Path) -> None:
        source = write_layout(tmp_path / "source", PUBLISHED["phi-3.5-mini"])
        build_here(source, tmp_path / "graph", "fp32")
        file = source / "config.json"
        config = json.loads(file.read_text())
        config["rope_scaling"]["long_factor"] = [1.1 * factor for factor in config["rope_scaling"]["long_factor"]]
        file.write_text(json.dumps(config))
        places = [0, 4096 - logits_process.BEFORE]
        wanted, pasts, size = run_source(source, places, "float32", None)
        found = run_graph(tmp_path / "graph", places, pasts, size)
        first = logits_process.AROUND[0]
        assert np.abs(found[0] - wanted[0]).max() < 1e-4
        assert np.abs(found[1][:first] - wanted[1][:first]).max() < 1e-4
        assert np.abs(found[1][first:] - wanted[1][first:]).max() > 0.01

    def test_a_quantised_family_that_the_builder_does_not_read(self, tmp_path: Path) -> None:
        source = write_layout(tmp_path / "source", PUBLISHED["phi-2"])
        quantise(source, "gptq")
        with pytest.raises(BuildRefused, match=r"quantised with gptq .*; name the checkpoint that it was made from"):
            shown(source, tmp_path)

    @pytest.mark.parametrize("changes", [{"furthest": 0.01}, {"furthest": float("nan")}, {"own_furthest": 0.5}])
    def test_by_its_numbers(self, changes: dict[str, float]) -> None:
        good = LogitsProof([0, 1], [], 64, 1.0, 1e-6, "bfloat16", own_furthest=0.02, own_rounding=0.02)
        logits._refuse(good)
        with pytest.raises(BuildRefused, match="report it"):
            logits._refuse(msgspec.structs.replace(good, **changes))

    def test_a_source_whose_logits_are_all_the_same(self, tmp_path: Path) -> None:
        make_random(tmp_path / "source", FAMILY_CONFIGS["mistral"]())
        file = tmp_path / "source" / "model.safetensors"
        weights = load_file(file)
        weights["model.norm.weight"].zero_()  # where a download stopped and its end was filled
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(BuildRefused, match=r"all its logits are the same: .* are zeros, .*; fetch the files again"):
            shown(tmp_path / "source", tmp_path)

    def test_two_layers_that_needed_other_workarounds(self) -> None:
        proof = LogitsProof([0, 1], [], 64, 1.0, 1e-6, "float32", workarounds=["a", "b"])
        assert compare_workarounds(proof, ["b", "a"]) == []
        assert "other workarounds than the whole model: c" in compare_workarounds(proof, ["a", "b", "c"])[0]


class TestAffordable:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        make_random(tmp_path / "source", FAMILY_CONFIGS["mistral"]())
        return tmp_path / "source"

    def test_too_little_memory_is_said(self, source: Path, tmp_path: Path) -> None:
        found = shown(source, tmp_path, memory=2**29)
        assert "not compared with the source's: that needs about 0.9 GiB of memory, and 0.5 GiB are free" in str(found)
        assert "GiB of memory" in found.describe()["not_compared"]

    def test_a_boundary_too_far_away_is_said(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logits, "MAX_CACHE_BYTES", 1000)
        found = shown(source, tmp_path)
        assert isinstance(found, LogitsProof)
        assert found.boundaries == []
        assert "nothing beyond 40 positions" in str(found)

    def test_it_is_computed_once(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = shown(source, tmp_path)
        monkeypatch.setattr(logits, "run_child", None)
        assert shown(source, tmp_path, memory=0) == first

    def test_code_of_the_checkpoint_is_not_run_for_it(self, source: Path, tmp_path: Path) -> None:
        found = compare_logits(inspect_checkpoint(source), "0" * 64, None, cache=tmp_path, log=tmp_path / "log")
        assert "runs code of its own" in str(found)
