"""Weights that are not in the file, or not the model's: one refusal with all of them, before anything is built."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.errors import BuildRefused
from packager.evaluate.jobs import ReferenceJob
from packager.evaluate.reference_process import look
from packager.sources.checkpoint import inspect_checkpoint
from packager.sources.opening import open_source
from packager.sources.weight_check import check_weights
from packager.subprocess_job import Reporter
from tests.packager.families import BASE, FAMILY_CONFIGS, make_random
from tests.packager.sources.test_sources import quantise

Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    make_random(directory, FAMILY_CONFIGS["llama-3"]())
    return directory


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def check(directory: Path) -> None:
    """What opening a source does before it reads a weight, in this process: its libraries are loaded already."""
    checkpoint = inspect_checkpoint(directory)
    check_weights(checkpoint, look(ReferenceJob(str(directory)), Reporter(os.open(os.devnull, os.O_WRONLY))))


def refused(directory: Path) -> str:
    with pytest.raises(BuildRefused) as caught:
        check(directory)
    return caught.value.message


def change(directory: Path, edit: Callable[[Tensors], object]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def set_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_a_whole_checkpoint_passes(family: str, tmp_path: Path) -> None:
    make_random(tmp_path, FAMILY_CONFIGS[family]())
    check(tmp_path)


def test_a_missing_norm(copy: Path) -> None:
    change(copy, lambda tensors: tensors.pop("model.layers.1.input_layernorm.weight"))
    assert "1 missing in the files: model.layers.1.input_layernorm.weight" in refused(copy)


def test_missing_layers_are_listed_by_number(copy: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(("model.layers.1.", "model.layers.2."))]:
            del tensors[name]

    change(copy, drop)
    message = refused(copy)
    assert "18 missing in the files" in message
    assert "model.layers.{1-2}.mlp.up_proj.weight" in message


def test_all_names_under_another_prefix(copy: Path) -> None:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[f"transformer.base.{name}"] = tensors.pop(name)

    change(copy, rename)
    message = refused(copy)
    assert "30 missing in the files" in message
    assert "30 that the model has no place for: transformer.base.lm_head.weight" in message


def test_everything_wrong_is_in_one_refusal(copy: Path) -> None:
    import torch

    def spoil(tensors: Tensors) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(128)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(161, 128)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(160, 128, dtype=torch.int8)

    change(copy, spoil)
    message = refused(copy)
    assert "model.norm.weight" in message
    assert "model.layers.0.self_attn.q_proj.bias" in message
    assert "model.layers.1.mlp.up_proj.weight is [161, 128] in the files and [160, 128] in the model" in message
    assert "model.layers.2.mlp.up_proj.weight is I8 in the files" in message


def test_buffers_that_old_versions_saved_are_harmless(copy: Path) -> None:
    import torch

    change(copy, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}))
    check(copy)


@pytest.mark.parametrize("rows", [-3, 5])
def test_an_embedding_of_another_size_than_the_vocabulary(copy: Path, rows: int) -> None:
    import torch

    def resize(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            old = tensors[name]
            tensors[name] = torch.cat([old, old])[: len(old) + rows].clone()

    change(copy, resize)
    message = refused(copy)
    assert f"model.embed_tokens.weight is [{448 + rows}, 128] in the files and [448, 128] in the model" in message
    assert f"set vocab_size to {448 + rows} in config.json" in message


class TestTied:
    @pytest.fixture
    def tied(self, tmp_path: Path) -> Path:
        from transformers import LlamaConfig

        make_random(tmp_path / "tied", LlamaConfig(**{**BASE, "num_hidden_layers": 2, "tie_word_embeddings": True}))
        return tmp_path / "tied"

    def test_no_lm_head(self, tied: Path) -> None:
        check(tied)

    def test_the_same_lm_head(self, tied: Path) -> None:
        change(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
        check(tied)

    def test_an_lm_head_of_its_own(self, tied: Path) -> None:
        change(tied, lambda t: t.update({"lm_head.weight": 2 * t["model.embed_tokens.weight"]}))
        message = refused(tied)
        assert "'lm_head.weight' that differs from 'model.embed_tokens.weight'" in message
        assert "set that to false" in message

    def test_no_lm_head_where_none_is_tied(self, copy: Path) -> None:
        change(copy, lambda tensors: tensors.pop("lm_head.weight"))
        assert "1 missing in the files: lm_head.weight" in refused(copy)


class TestShards:
    @pytest.fixture
    def sharded(self, copy: Path) -> Path:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(copy)
        (copy / "model.safetensors").unlink()
        model.save_pretrained(copy, max_shard_size="400KB")
        return copy

    def test_they_pass(self, sharded: Path) -> None:
        assert len(list(sharded.glob("model-*.safetensors"))) > 2
        check(sharded)

    def test_without_their_index(self, sharded: Path) -> None:
        (sharded / "model.safetensors.index.json").unlink()
        assert "no model.safetensors.index.json; fetch that too" in refused(sharded)

    def test_an_index_that_is_wrong(self, sharded: Path) -> None:
        file = sharded / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
        file.write_text(json.dumps(index))
        assert "states that 'model.norm.weight' is in" in refused(sharded)

    def test_mistrals_own_file_beside_them_is_left_alone(self, sharded: Path) -> None:
        shutil.copyfile(next(sharded.glob("model-*.safetensors")), sharded / "consolidated.safetensors")
        check(sharded)

    def test_mistrals_own_file_alone(self, copy: Path) -> None:
        (copy / "model.safetensors").rename(copy / "consolidated.safetensors")
        assert "fetch model.safetensors as well" in refused(copy)


class TestQuantised:
    @pytest.mark.parametrize("method", ["gptq", "awq"])
    def test_it_passes(self, copy: Path, method: str) -> None:
        quantise(copy, method)
        check(copy)

    @pytest.mark.parametrize("method", ["gptq", "awq"])
    def test_codes_of_a_product_are_missing(self, copy: Path, method: str) -> None:
        quantise(copy, method)
        change(copy, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.scales"))
        assert "1 missing in the files: model.layers.1.mlp.up_proj.scales" in refused(copy)

    def test_a_missing_norm_and_a_shape(self, copy: Path) -> None:
        import torch

        quantise(copy, "gptq")

        def spoil(tensors: Tensors) -> None:
            del tensors["model.layers.0.post_attention_layernorm.weight"]
            tensors["model.layers.1.mlp.up_proj.qweight"] = torch.zeros(8, 160, dtype=torch.int32)

        change(copy, spoil)
        message = refused(copy)
        assert "model.layers.0.post_attention_layernorm.weight" in message
        assert "model.layers.1.mlp.up_proj.qweight is [8, 160] in the files and [16, 160] in the model" in message

    def test_autogptqs_biases_of_zeros_alone_are_harmless(self, copy: Path) -> None:
        import torch

        quantise(copy, "gptq")
        name = "model.layers.1.mlp.up_proj.bias"
        change(copy, lambda tensors: tensors.update({name: torch.zeros(160)}))
        check(copy)
        change(copy, lambda tensors: tensors.update({name: torch.full((160,), 0.5)}))
        assert f"1 that the model has no place for: {name}" in refused(copy)


def test_opening_a_source_refuses_it_before_its_numbers_are_read(copy: Path, tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")

    change(copy, spoil)
    with pytest.raises(BuildRefused, match=r"1 missing in the files: model\.norm\.weight"):
        open_source(str(copy), tmp_path / "cache", tmp_path / "log", lambda done, total: None)


def test_a_whole_file_beside_an_index_of_others(copy: Path) -> None:
    shutil.copyfile(copy / "model.safetensors", copy / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "remove one of the two" in refused(copy)
