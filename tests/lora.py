"""LoRA adapters as peft writes them, with random numbers: for tests of merging them and of switching between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def make_lora(
    checkpoint: Path,
    directory: Path,
    seed: int,
    *,
    size: float = 0.1,
    targets: tuple[str, ...] = TARGETS,
    rank: int = 4,
    **changes: Any,
) -> Path:
    """An adapter of ``rank`` for ``targets`` in every layer of a llama-like ``checkpoint``; ``size`` is how loud."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    weights = load_file(checkpoint / "model.safetensors")
    tensors = {}
    for name in sorted(weights):
        if name.endswith(tuple(f".{target}.weight" for target in targets)):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            rows, columns = weights[name].shape
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns) * size
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, rank) * size
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [target.rpartition(".")[2] for target in targets],
    }
    (directory / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return directory
