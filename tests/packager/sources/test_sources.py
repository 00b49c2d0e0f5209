"""Sources: the hub, adapters, checkpoints that are quantised already, and whatever can be wrong with one."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from contract.errors import BuildRefused, StoreFull, UsageError
from packager.build.estimate import (
    Estimate,
    available_memory,
    estimate_build,
    refuse_conversion,
    refuse_what_cannot_fit,
    size_text,
)
from packager.build.pipeline import dry_run
from packager.build.plan import BuildPlan, check_source
from packager.commands.build import source_options
from packager.evaluate.conformance import compare
from packager.graph.facts import read_back
from packager.sources.checkpoint import Pending, Quantization, find_shards, inspect_checkpoint
from packager.sources.hub import is_hub_id
from packager.sources.licenses import check_license
from packager.sources.opening import OpenedSource, SourceOptions, open_source
from packager.sources.safetensors_header import read_header
from packager.sources.shape import ModelShape, read_shape
from tests.packager.families import FAMILY_CONFIGS, build_here, difference, make_random, runtime, sample_ids
from tests.random_checkpoint import list_weights, make_random_checkpoint, small_config

COMMIT = "2fe192450127e6a83f7441aef6e3ca586c338b77"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint."""
    directory = tmp_path_factory.mktemp("llama")
    make_random(directory, FAMILY_CONFIGS["llama-3"]())
    return directory


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def opened(source: Path | str, tmp_path: Path, options: SourceOptions | None = None) -> OpenedSource:
    # One cache for all tests: what is known of a checkpoint's small files is read in a process of its own.
    return open_source(
        str(source), tmp_path.parent / "shared-cache", tmp_path / "log", lambda done, total: None, options
    )


def refused(source: Path | str, tmp_path: Path, options: SourceOptions | None = None) -> str:
    with pytest.raises(BuildRefused) as caught:
        opened(source, tmp_path, options)
    return caught.value.message


class TestHub:
    @pytest.fixture
    def hub(self, llama: Path, tmp_path: Path) -> Path:
        """A hub cache that holds one model, laid out as the hub's own library does."""
        model = tmp_path / "hub" / "models--owner--model"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text(COMMIT)
        shutil.copytree(llama, model / "snapshots" / COMMIT)
        return tmp_path / "hub"

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def test_a_model_in_the_cache_needs_no_network_and_its_commit_is_kept(self, hub: Path, tmp_path: Path) -> None:
        found = opened("owner/model", tmp_path, SourceOptions(hub_cache=hub))
        assert (found.kind, found.label, found.revision) == ("hub", "owner/model", COMMIT)
        assert found.checkpoint.architecture == "LlamaForCausalLM"
        assert found.describe()["revision"] == COMMIT
        where = hub / "models--owner--model" / "snapshots" / COMMIT
        assert found.checkpoint.path == where, "its shards are read where they lie, and never copied"

    def test_a_revision_can_be_pinned(self, hub: Path, tmp_path: Path) -> None:
        assert opened("owner/model", tmp_path, SourceOptions(COMMIT, hub)).revision == COMMIT
        assert "not in the cache" in refused("owner/model", tmp_path, SourceOptions("v2", hub))

    def test_a_model_that_is_not_there(self, hub: Path, tmp_path: Path) -> None:
        assert "not in the cache" in refused("owner/other", tmp_path, SourceOptions(hub_cache=hub))

    def test_a_revision_of_a_directory_makes_no_sense(self, llama: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--revision"):
            opened(llama, tmp_path, SourceOptions(revision="main"))

    def test_paths_are_no_hub_models(self, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(llama.parent)
        assert is_hub_id("microsoft/Phi-3.5-mini-instruct")
        for text in (str(llama), "../x", "a/b/c", "model.gguf", "./a/b", "a/..", ""):
            assert not is_hub_id(text)


def make_adapter(directory: Path, base: str = "", **changes: Any) -> Path:
    """A rank-2 adapter of the random Llama's query and down projections."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    tensors = {}
    for name, (rows, columns) in {"self_attn.q_proj": (128, 128), "mlp.down_proj": (128, 160)}.items():
        stem = f"base_model.model.model.layers.1.{name}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(2, columns) * 0.2
        tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 2) * 0.2
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base, "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], **changes,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


class TestAdapter:
    def test_merged_weights_are_base_plus_scaled_product(self, llama: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        adapter = make_adapter(tmp_path / "adapter")
        found = opened(llama, tmp_path, SourceOptions(adapter=adapter))
        before = load_file(llama / "model.safetensors")
        after = load_file(found.checkpoint.path / "model.safetensors")
        deltas = load_file(adapter / "adapter_model.safetensors")
        stem, target = "base_model.model.model.layers.1.mlp.down_proj", "model.layers.1.mlp.down_proj.weight"
        wanted = before[target] + 2.0 * deltas[f"{stem}.lora_B.weight"] @ deltas[f"{stem}.lora_A.weight"]
        assert np.allclose(after[target].numpy(), wanted.numpy(), atol=1e-5)
        changed = {name for name in before if not before[name].equal(after[name])}
        assert changed == {target, "model.layers.1.self_attn.q_proj.weight"}
        assert found.describe()["adapter"]["name"] == "adapter"
        assert found.digest != opened(llama, tmp_path).digest

    def test_it_is_merged_once(self, llama: Path, tmp_path: Path) -> None:
        options = SourceOptions(adapter=make_adapter(tmp_path / "adapter"))
        first = opened(llama, tmp_path, options).checkpoint.path / "config.json"
        stamp = first.stat().st_mtime_ns
        assert opened(llama, tmp_path, options).checkpoint.path / "config.json" == first
        assert first.stat().st_mtime_ns == stamp

    def test_an_adapter_of_another_base(self, tmp_path: Path) -> None:
        other = FAMILY_CONFIGS["qwen-3"]()
        other.intermediate_size = 192
        make_random(tmp_path / "other", other)
        adapter = make_adapter(tmp_path / "adapter")
        assert "belongs to another base" in refused(tmp_path / "other", tmp_path, SourceOptions(adapter=adapter))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"peft_type": "IA3"}, "not a LoRA"),
            ({"use_qalora": True}, "use_qalora"),
            ({"trainable_token_indices": [1]}, "trainable_token_indices"),
            ({"r": None}, "no rank"),
            ({"init_lora_weights": "pissa_niter_16"}, "changes the base by more than its files hold"),
            ({"init_lora_weights": "loftq"}, "changes the base by more than its files hold"),
            ({"init_lora_weights": "corda"}, "changes the base by more than its files hold"),
            ({"init_lora_weights": "lora_ga"}, "changes the base by more than its files hold"),
            ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ],
    )
    def test_what_cannot_be_merged(self, llama: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        adapter = make_adapter(tmp_path / "adapter", **changes)
        assert words in refused(llama, tmp_path, SourceOptions(adapter=adapter))

    def test_no_adapter(self, llama: Path, tmp_path: Path) -> None:
        assert "not an adapter" in refused(llama, tmp_path, SourceOptions(adapter=tmp_path))

    def test_it_must_be_said_that_it_is_merged(self, tmp_path: Path) -> None:
        import argparse

        arguments = argparse.Namespace(
            adapter=tmp_path, merge_adapter=False, base=None, revision=None, hub_cache=None, trust_remote_code=False
        )
        with pytest.raises(UsageError, match="--merge-adapter"):
            source_options(arguments)


class TestDamaged:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_weights_that_are_no_numbers(self, copy: Path, tmp_path: Path, value: float, dtype: str) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        tensors = {
            name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(copy / "model.safetensors").items()
        }
        save_file(tensors, copy / "model.safetensors")
        assert opened(copy, tmp_path).checkpoint.parameters > 0
        tensors["model.layers.2.mlp.up_proj.weight"][-1, -1] = value
        save_file(tensors, copy / "model.safetensors")
        message = refused(copy, tmp_path)
        assert "model.layers.2.mlp.up_proj.weight" in message

    def test_a_tokenizer_of_another_model(self, copy: Path, tmp_path: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        config["vocab_size"] = 300
        (copy / "config.json").write_text(json.dumps(config))
        assert "belongs to another model" in refused(copy, tmp_path)

    def test_code_of_the_checkpoint_is_not_run_unasked(self, copy: Path, tmp_path: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        config.update(architectures=["InternLM2ForCausalLM"], auto_map={"AutoConfig": "configuration.InternLM2Config"})
        (copy / "config.json").write_text(json.dumps(config))
        assert "--trust-remote-code" in refused(copy, tmp_path)
        assert opened(copy, tmp_path, SourceOptions(trust_code=True)).checkpoint.family == "internlm2"

    def test_no_chat_template_is_allowed(self, copy: Path, tmp_path: Path) -> None:
        (copy / "chat_template.jinja").unlink()
        assert opened(copy, tmp_path).checkpoint.chat_template is None


def quantise(directory: Path, method: str, group: int = 32) -> None:
    """Turn the products of a random checkpoint into ``method``'s 4-bit form, rounded to nearest, zero point 8."""
    import torch
    from safetensors.torch import load_file, save_file

    order = [0, 2, 4, 6, 1, 3, 5, 7] if method == "awq" else list(range(8))
    tensors = load_file(directory / "model.safetensors")
    packed = {}
    for name, weight in tensors.items():
        if not name.endswith("_proj.weight"):
            packed[name] = weight
            continue
        stem, inputs, outputs = name.removesuffix(".weight"), weight.shape[1], weight.shape[0]
        groups = weight.T.reshape(inputs // group, group, outputs)
        scales = groups.abs().amax(1) / 7
        codes = ((groups / scales[:, None]).round().clamp(-8, 7) + 8).to(torch.int32).reshape(inputs, outputs)
        zeros = torch.full((inputs // group, outputs), 8 if method == "awq" else 7, dtype=torch.int32)

        def pack(rows: Any) -> Any:
            """Eight codes a word, along the last axis."""
            parts = rows.reshape(*rows.shape[:-1], -1, 8).to(torch.int64)
            word = sum(parts[..., order[place]] << (4 * place) for place in range(8))
            return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32).contiguous()

        packed[f"{stem}.qweight"] = pack(codes) if method == "awq" else pack(codes.T.contiguous()).T.contiguous()
        packed[f"{stem}.qzeros"] = pack(zeros)
        packed[f"{stem}.scales"] = scales.to(torch.float16)
        if method == "gptq":
            packed[f"{stem}.g_idx"] = torch.arange(inputs, dtype=torch.int32) // group
    save_file(packed, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": method, "bits": 4, "group_size": group, "desc_act": False, "sym": True, "zero_point": True,
        "version": "gemm",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))


class TestQuantised:
    @pytest.mark.parametrize("method", ["gptq", "awq"])
    def test_its_bits_are_kept_and_it_computes_what_the_plain_one_does(
        self, copy: Path, llama: Path, tmp_path: Path, method: str
    ) -> None:
        quantise(copy, method)
        checkpoint = inspect_checkpoint(copy)
        assert checkpoint.quantization == Quantization(method, 4, 32)
        plan = BuildPlan("source", "tiny", "1.0.0")
        assert check_source(plan, checkpoint) == method
        report = build_here(copy, tmp_path / "out", "int4", options=("block_size=32", "accuracy_level=4"))
        config, graph = read_back(tmp_path / "out")
        assert compare(plan, report.config, config, graph) == []
        build_here(llama, tmp_path / "plain", "fp32")
        _, cosine = difference(runtime(tmp_path / "out")(sample_ids(30)), runtime(tmp_path / "plain")(sample_ids(30)))
        assert cosine > 0.9

    @pytest.mark.parametrize(
        "changes", [{"precision": "int8"}, {"block_size": 128}, {"quantizer": "k-quant"}, {"precision": "fp32"}]
    )
    def test_asking_for_something_else_is_refused_with_what_it_is(self, copy: Path, changes: dict[str, Any]) -> None:
        quantise(copy, "gptq")
        plan = msgspec.structs.replace(BuildPlan("source", "tiny", "1.0.0"), **changes)
        with pytest.raises(UsageError, match="gptq to 4 bits in groups of 32"):
            check_source(plan, inspect_checkpoint(copy))

    def test_other_methods_are_refused(self, copy: Path, tmp_path: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes"}
        (copy / "config.json").write_text(json.dumps(config))
        assert "bitsandbytes" in refused(copy, tmp_path)


class TestEstimate:
    def test_larger_models_need_more(self) -> None:
        plan = BuildPlan("source", "tiny", "1.0.0")
        small, large = (estimate_build(plan, ModelShape(parameters)) for parameters in (10**8, 4 * 10**9))
        assert small.memory_bytes < large.memory_bytes
        assert small.disk_bytes < large.disk_bytes
        assert "GiB of memory" in str(large)

    @pytest.mark.parametrize("changes", [{"quantizer": "gptq"}, {"quantizer": "auto-round"}, {"kv": "int8"}])
    def test_what_takes_longer_is_said_to(self, changes: dict[str, Any]) -> None:
        plan = BuildPlan("source", "tiny", "1.0.0", quantizer="rtn", kv="float")
        plain = estimate_build(plan, ModelShape(10**9))
        more = estimate_build(msgspec.structs.replace(plan, **changes), ModelShape(10**9))
        assert more.seconds > 1.5 * plain.seconds
        assert more.memory_bytes >= plain.memory_bytes
        assert more.disk_bytes >= plain.disk_bytes

    def test_pictures_take_their_time_in_every_graph_that_is_built(self) -> None:
        text = BuildPlan("source", "tiny", "1.0.0", quantizer="rtn", kv="float")
        took = {}
        for kv in ("float", "auto"):
            plan = msgspec.structs.replace(text, kv=kv)
            without, seeing = (
                estimate_build(msgspec.structs.replace(plan, sees=sees), ModelShape(10**9)).seconds
                for sees in (False, True)
            )
            took[kv] = seeing - without
        # The source is asked once.
        assert 0 < took["float"] < took["auto"] < 2 * took["float"]

    @pytest.mark.parametrize(
        ("size", "text"),
        [(0, "0.0 KiB"), (5000, "4.9 KiB"), (40 << 20, "40.0 MiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1024.0 GiB")],
    )
    def test_sizes_are_told_in_a_unit_that_leaves_a_number(self, size: int, text: str) -> None:
        assert size_text(size) == text
        assert "0.0 GiB" not in str(Estimate(2000, 3 << 20, 60))

    def test_what_cannot_fit_is_refused_before_it_starts(self, tmp_path: Path) -> None:
        with pytest.raises(BuildRefused, match="of memory are free"):
            refuse_what_cannot_fit(Estimate(2**40, 0, 60), tmp_path, tmp_path, memory=2**30)
        with pytest.raises(StoreFull, match="are free in"):
            refuse_what_cannot_fit(Estimate(0, 2**60, 60), tmp_path / "not" / "there", tmp_path, memory=2**30)
        refuse_what_cannot_fit(Estimate(0, 0, 60), tmp_path, tmp_path)

    def test_what_turns_a_source_into_a_checkpoint_belongs_to_it(self, tmp_path: Path) -> None:
        plain = estimate_build(BuildPlan("source", "tiny", "1.0.0", quantizer="rtn"), ModelShape(10**9))
        pending = Pending(memory_bytes=2**40, disk_bytes=2**50)
        whole = plain.after(pending)
        assert whole.memory_bytes > 2**40
        assert whole.disk_bytes == plain.disk_bytes + 2**50
        assert plain.after(Pending()) == plain
        # The larger of the two, not both: one ends before the other begins.
        assert plain.after(Pending(memory_bytes=2**20)).memory_bytes == plain.memory_bytes
        refuse_what_cannot_fit(plain, tmp_path, tmp_path, memory=2**39)
        with pytest.raises(BuildRefused, match=r"about 1024.2 GiB of memory, .* only 512.0 GiB of memory are free"):
            refuse_what_cannot_fit(whole, tmp_path, tmp_path, memory=2**39)
        with pytest.raises(StoreFull, match=r"needs about .* of disk .* are free in"):
            refuse_what_cannot_fit(whole, tmp_path, tmp_path, memory=2**41)
        fetched = Pending(download_bytes=2**60, download_directory=tmp_path / "hub")
        with pytest.raises(StoreFull, match=r"1073741824.0 GiB to be fetched, and only .* are free in"):
            refuse_what_cannot_fit(plain, tmp_path, tmp_path, memory=2**41, pending=fetched)

    def test_and_is_refused_again_right_before_it_is_done(self, tmp_path: Path) -> None:
        refuse_conversion(Pending(2**30, 1), tmp_path / "not" / "there", "reading it", memory=2**30)
        with pytest.raises(BuildRefused, match=r"reading it needs about 1.0 GiB of memory, and 512.0 MiB are free"):
            refuse_conversion(Pending(2**30), tmp_path, "reading it", memory=2**29)
        with pytest.raises(StoreFull, match=r"reading it needs about 1073741824.0 GiB of disk"):
            refuse_conversion(Pending(0, 2**60), tmp_path, "reading it", memory=2**29)


class TestMemoryOfAGroup:
    """A limit counts wherever it is set, and files that can be given up do not."""

    @pytest.mark.parametrize("version", [1, 2])
    def test_the_nearest_limit_counts(self, tmp_path: Path, version: int) -> None:
        (tmp_path / "self").mkdir()
        line = "0::/user/one" if version == 2 else "5:cpu,cpuacct:/other\n4:memory:/user/one"
        (tmp_path / "self" / "cgroup").write_text(f"{line}\n")
        root = tmp_path / "groups" / ("" if version == 2 else "memory")
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        most = "max" if version == 2 else str(2**63 - 4096)
        for group, limit in (("user", str(9 * 2**20)), ("user/one", most)):
            (root / group).mkdir(parents=True)
            (root / group / names[0]).write_text(f"{limit}\n")
            (root / group / names[1]).write_text(f"{7 * 2**20}\n")
            word = "" if version == 2 else "total_"
            (root / group / "memory.stat").write_text(f"anon 1\n{word}inactive_file {3 * 2**20}\n{word}active_file 5\n")
        assert available_memory(tmp_path, tmp_path / "groups") == 5 * 2**20 + 5

    def test_no_limit_is_no_limit(self, tmp_path: Path) -> None:
        assert available_memory(tmp_path, tmp_path) > 2**20


def _cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size * 9 // 10)


def _name_twice(shards: list[Path], index: Path) -> None:
    text = index.read_text()
    weight = next(iter(json.loads(text)["weight_map"]))
    index.write_text(text.replace('"weight_map": {', f'"weight_map": {{"{weight}": "{shards[-1].name}", ', 1))


def _hold_twice(shards: list[Path], index: Path) -> None:
    shards[-1].write_bytes(shards[0].read_bytes())


def _leave_out(shard: Path, share: float, *, hole: bool = True) -> None:
    """The last ``share`` of the numbers as an interrupted download leaves them, in a file of its whole size."""
    size = shard.stat().st_size
    kept = size - int(share * (size - 8 - len(read_header(shard))))
    os.truncate(shard, kept)
    if hole:
        os.truncate(shard, size)
    else:
        with shard.open("ab") as file:
            file.write(bytes(size - kept))


SHARDS: dict[str, tuple[Callable[[list[Path], Path], object], str]] = {
    "the first cut": (lambda shards, index: _cut(shards[0]), "bytes, its header speaks of "),
    "the last cut": (lambda shards, index: _cut(shards[-1]), "-of-00013.safetensors has "),
    "cut in its header": (lambda shards, index: os.truncate(shards[1], 40), "00002-of-00013.safetensors is truncated"),
    "nothing left of one": (lambda shards, index: os.truncate(shards[1], 0), "00002-of-00013.safetensors is empty"),
    "the last missing": (lambda shards, index: shards[-1].unlink(), "lacks 1 of 13 weight files, first 'model-00013-"),
    "named twice": (_name_twice, "the key 'model.embed_tokens.weight' is there twice; fetch it again"),
    "a hole at the end": (lambda shards, index: _leave_out(shards[-1], 0.6), "zeros that were never written, as an "),
    "held twice": (_hold_twice, "-00001-of-00013.safetensors and model-00013-of-00013.safetensors both hold"),
}  # fmt: skip


class TestHeadersFirst:
    """What headers tell is known before the weights are read."""

    def test_a_model_that_cannot_fit_is_refused_by_its_headers(self, copy: Path, tmp_path: Path) -> None:
        header = json.dumps(
            {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [2**21, 2**20], "data_offsets": [0, 2**42]}}
        ).encode()
        with (copy / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 2**42)  # four terabytes of nothing, which would take an hour to read
        with pytest.raises(BuildRefused, match=r"needs about \d+\.\d GiB of memory, .* GiB of memory are free"):
            dry_run(BuildPlan(str(copy), "tiny", "1.0.0"), tmp_path / "out", cache=tmp_path / "cache")

    @pytest.mark.parametrize("damage", SHARDS)
    def test_a_shard_that_is_not_whole_is_named_and_goes_on_when_it_was_fetched(
        self, damage: str, tmp_path: Path
    ) -> None:
        source = make_random_checkpoint(tmp_path / "source", small_config("mistral-7b"), shard_bytes=200_000)
        shards = find_shards(source)
        index = source / "model.safetensors.index.json"
        kept = {path: path.read_bytes() for path in (*shards, index)}
        damaging, words = SHARDS[damage]
        damaging(shards, index)
        assert words in refused(source, tmp_path)
        for path, data in kept.items():
            path.write_bytes(data)
        assert inspect_checkpoint(source).parameters == sum(
            math.prod(dims) for _, dims in list_weights(small_config("mistral-7b"))
        )

    def test_a_proof_that_is_left_out_is_not_counted(self) -> None:
        estimate = Estimate(2**30, 0, 60, proof_bytes=3 * 2**30)
        assert estimate.within(4 * 2**30).memory_bytes == 3 * 2**30
        assert estimate.within(2 * 2**30).memory_bytes == 2**30

    def test_its_parts_are_read_from_headers(self, tmp_path: Path) -> None:
        config = {**small_config("llama-3.2-1b"), "head_dim": 32}
        make_random_checkpoint(tmp_path / "source", config, shard_bytes=20_000)
        checkpoint = inspect_checkpoint(tmp_path / "source")
        assert len(find_shards(checkpoint.path)) > 2
        shape = read_shape(checkpoint)
        weights = dict(list_weights(config))
        assert shape.parameters == sum(math.prod(dims) for dims in weights.values())
        assert shape.layer == sum(math.prod(dims) for name, dims in weights.items() if "layers.0." in name)
        assert (shape.vocabulary, shape.hidden, shape.table, shape.half) == (512, 128, 0, True)
        assert shape.kv_token_bytes == 2 * 4 * 2 * 1 * 32
        packed = [math.prod(dims) for name, dims in weights.items() if re.search("[qkv]_proj", name)]
        assert shape.copied_bytes == 2 * sum(packed)
        assert (shape.rope_bytes, shape.switching_rope_bytes) == (config["max_position_embeddings"] * 32 * 4, 0)

    def test_tables_in_branches_and_an_embedding_of_its_own_count(self, tmp_path: Path) -> None:
        make_random_checkpoint(tmp_path / "source", small_config("phi-3.5-mini"))
        shape = read_shape(inspect_checkpoint(tmp_path / "source"))
        assert shape.switching_rope_bytes == (131072 + 4096) * 96 * 4
        assert (shape.switches_at, shape.layer_kv_bytes) == (4096, 2 * 4 * 192)
        assert shape.table == 512 * 192
        plain, int8 = (
            estimate_build(BuildPlan("source", "tiny", "1.0.0", embedding=kind, kv="float"), shape)
            for kind in ("float", "int8")
        )
        assert 2 * shape.table < plain.disk_bytes - int8.disk_bytes < 8 * shape.table


class TestLicenses:
    @pytest.mark.parametrize(
        ("text", "spdx"),
        [
            ("apache-2.0", "Apache-2.0"), ("MIT", "MIT"), ("mit or apache-2.0", "MIT OR Apache-2.0"),
            ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
            ("LicenseRef-Ours", "LicenseRef-Ours"), ("unknown", "unknown"),
        ],
    )  # fmt: skip
    def test_an_expression_is_written_as_spdx_writes_it(self, text: str, spdx: str) -> None:
        assert check_license(text) == spdx

    @pytest.mark.parametrize(
        ("text", "words"),
        [("Apache 2.0", "did you mean Apache-2.0"), ("llama3.2", "did you mean LicenseRef-Llama-3.2"),
         ("proprietary", "LicenseRef-NAME"), ("MIT AND", "did you mean MIT"), ("", "spdx.org")],
    )  # fmt: skip
    def test_what_is_none_is_refused_with_what_was_meant(self, text: str, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            check_license(text)

    @pytest.mark.parametrize(
        ("head", "spdx"),
        [
            ("---\nlicense: apache-2.0\n---\n", "Apache-2.0"),
            ("---\nlicense: 'llama3.1'\n---\n", "LicenseRef-Llama-3.1"),
            ("---\nlicense: gpl-3.0\n---\n", "GPL-3.0"),
            ("---\nlicense: other\nlicense_name: Falcon LLM\n---\n", "LicenseRef-Falcon-LLM"),
            ("---\nlicense: other\n---\n", "unknown"),
            ("---\ntags: [x]\n---\nlicense: mit\n", "unknown"),
            ("", "unknown"),
        ],
    )
    def test_a_cards_licence(self, copy: Path, head: str, spdx: str) -> None:
        (copy / "README.md").write_text(head)
        assert inspect_checkpoint(copy).license_spdx == spdx


class TestNaming:
    """What people name instead of a source is answered with what to name."""

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("https://huggingface.co/owner/model", "name the model as owner/model"),
            ("https://huggingface.co/owner/model/tree/v2", "owner/model --revision v2"),
            ("hf.co/owner/model/blob/main/config.json", "name the model as owner/model"),
            ("models/missing.gguf", "there is no file 'models/missing.gguf'"),
            ("missing.gguf", "there is no file"),
            ("https://huggingface.co/datasets/owner/texts", "is a data set and not a model"),
            ("huggingface.co/spaces/owner/demo", "is an application and not a model"),
            ("https://github.com/owner/model", "is an address; fetch it and name"),
            ("s3://bucket/model", "is an address; fetch it and name"),
            ("git@hf.co:owner/model", "is an address; fetch it and name"),
            ("owner/model:Q4_K_M", "names a tag, as other tools do"),
            ("llama3.2:1b", "names a tag, as other tools do"),
            ("https://huggingface.co/owner/model/resolve/main/m.Q4_K_M.gguf", "fetch it and name the file"),
            ("owner/model@v1.0", "name owner/model --revision v1.0"),
            ("owner/model/", "name it as owner/model"),
            ("model.GGUF", "there is no file 'model.GGUF'"),
            ("", "SOURCE is empty"),
        ],
    )
    def test_addresses_and_files_that_are_not_there(self, text: str, words: str, tmp_path: Path) -> None:
        assert words in refused(text, tmp_path)

    def test_an_entry_of_the_hubs_cache(self, llama: Path, tmp_path: Path) -> None:
        shutil.copytree(llama, tmp_path / "models--owner--model" / "snapshots" / COMMIT)
        message = refused(tmp_path / "models--owner--model", tmp_path)
        assert f"name its snapshot: {tmp_path}/models--owner--model/snapshots/{COMMIT}" in message

    def test_an_adapter(self, tmp_path: Path) -> None:
        assert "name the model that it was trained on" in refused(make_adapter(tmp_path / "adapter"), tmp_path)

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            (["genai_config.json", "model.onnx"], "edge-packager pack makes a bundle of it"),
            (["manifest.json", "genai_config.json"], "is a bundle already"),
            (["config.json", "onnx/model.onnx"], "name the checkpoint that they were made from"),
            (["model_index.json"], "a pipeline of diffusers"),
            (["params.json", "consolidated.00.pth", "tokenizer.model"], "its maker's own layout"),
            (["inner/config.json", "README.md"], "a directory in it has; name that: {path}/inner"),
        ],
    )
    def test_directories_of_other_things(self, files: list[str], words: str, tmp_path: Path) -> None:
        path = tmp_path / "model"
        for file in files:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text("{}")
        assert words.format(path=path) in refused(path, tmp_path)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("model.zip", "is an archive; unpack it"),
            ("model.tar.gz", "is an archive; unpack it"),
            ("model.safetensors", "is one file of a checkpoint; name its directory: {path}"),
            ("pytorch_model.bin", "is one file of a checkpoint; name its directory: {path}"),
            ("config.json", "is one file of a checkpoint; name its directory: {path}"),
            ("model.onnx", "is a finished graph"),
            ("model.edgebundle", "is a bundle already"),
        ],
    )
    def test_files_that_are_no_source(self, name: str, words: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"x")
        assert words.format(path=tmp_path) in refused(tmp_path / name, tmp_path)

    def test_a_directory_within_a_checkpoint(self, copy: Path, tmp_path: Path) -> None:
        (copy / "onnx").mkdir()
        assert f"the directory above it has; name that: {copy}" in refused(copy / "onnx", tmp_path)

    def test_a_directory_of_gguf_files(self, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "a.gguf").write_bytes(b"GGUF")
        assert f"name one of them: {tmp_path}/models/a.gguf" in refused(tmp_path / "models", tmp_path)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"group_size": -1}, "one scale for each whole column"),
            ({"quant_method": "awq", "bits": None, "w_bit": 4}, "rename w_bit to bits"),
        ],
    )
    def test_quantised_in_ways_that_cannot_be_built(
        self, copy: Path, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        config = json.loads((copy / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, **changes}
        (copy / "config.json").write_text(json.dumps(config))
        assert words in refused(copy, tmp_path)
