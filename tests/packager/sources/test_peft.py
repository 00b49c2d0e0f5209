"""Adapters that peft made, merged: the checkpoint computes what peft computed with the adapter beside its base."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from contract.errors import BuildRefused
from packager.sources import adapter, adapter_process
from packager.sources.adapter import check_base, inspect_adapter, merge_adapter
from packager.sources.adapter_export_process import _hold_against_peft
from packager.sources.checkpoint import inspect_checkpoint
from packager.sources.headers import read_headers
from packager.sources.jobs import AdapterExportJob, MergeJob
from packager.subprocess_job import Reporter, Task
from tests.packager.families import FAMILY_CONFIGS, make_random, sample_ids, source_logits

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "patterns": {"rank_pattern": {"down_proj": 5}, "alpha_pattern": {"q_proj": 13}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "saved-module": {"modules_to_save": ["lm_head"]},
}


@pytest.fixture(autouse=True)
def child_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process does, in this one."""

    def run(task: Task[Any, Any], job: MergeJob, log: Path, **more: Any) -> Any:
        return adapter_process.merge(job, Reporter(os.open(os.devnull, os.O_WRONLY)))

    monkeypatch.setattr(adapter, "run_child", run)


def train(base: Path, out: Path, **changes: Any) -> np.ndarray:
    """An adapter of ``base`` in ``out``, as far from its beginning as training brings it; peft's logits with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **changes
    )
    adapted = get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            size = 0.05 if "magnitude" in name else 0.1 * float(parameter.std()) + 0.02
            parameter.data += size * torch.randn_like(parameter)
    adapted.save_pretrained(out)
    return source_logits(adapted, sample_ids(40))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    make_random(directory, FAMILY_CONFIGS["llama-3"]())
    return directory


def merged(base: Path, lora: Path, tmp_path: Path) -> Path:
    checkpoint, found = inspect_checkpoint(base), inspect_adapter(lora)
    check_base(found, checkpoint, read_headers(base), str(base))
    return merge_adapter(
        checkpoint, "0" * 64, found, cache=tmp_path, log=tmp_path / "log", on_progress=lambda done, total: None
    ).path


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_peft_does(kind: str, base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    wanted = train(base, tmp_path / "lora", **KINDS[kind])
    plain = source_logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), sample_ids(40))
    model = AutoModelForCausalLM.from_pretrained(merged(base, tmp_path / "lora", tmp_path), dtype=torch.float32)
    found = source_logits(model, sample_ids(40))
    assert np.abs(plain - wanted).max() > 0.05 * wanted.std()
    assert np.abs(found - wanted).max() < 1e-4 * wanted.std()


def test_a_base_in_16_bits_stays_so(base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    half = tmp_path / "half"
    make_random(half, FAMILY_CONFIGS["llama-3"]()).to(torch.bfloat16).save_pretrained(half)
    wanted = train(half, tmp_path / "lora")
    out = merged(half, tmp_path / "lora", tmp_path)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert (out / "config.json").read_bytes() == (half / "config.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert np.abs(source_logits(model, sample_ids(40)) - wanted).max() < 0.1 * wanted.std()


@pytest.mark.parametrize("kind", ["dora", "pissa", "olora", "patterns", "saved-module"])
def test_beside_its_base_it_is_refused_by_name(kind: str, base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "lora", **KINDS[kind])
    with pytest.raises(BuildRefused, match="--merge-adapter"):
        inspect_adapter(tmp_path / "lora", merged=False)


@pytest.mark.parametrize("kind", ["plain", "rslora"])
def test_what_an_adapter_adds_is_held_against_peft(kind: str, base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "lora", **KINDS[kind])
    found = inspect_adapter(tmp_path / "lora", merged=False)
    weights = str(tmp_path / "lora" / "adapter_model.safetensors")
    job = AdapterExportJob(str(base), str(tmp_path / "lora"), dict(found.pairs), weights, found.scale, "", [])
    _hold_against_peft(job)
    with pytest.raises(BuildRefused, match=r"something else .* in peft than scale \* B A"):
        _hold_against_peft(replace(job, scale=1.01 * found.scale))


def test_too_little_memory_is_said_before_the_base_is_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(base, tmp_path / "lora")
    monkeypatch.setattr(adapter, "PROCESS_BYTES", 2**60)
    with pytest.raises(BuildRefused, match="merging the adapter needs about"):
        merged(base, tmp_path / "lora", tmp_path)
