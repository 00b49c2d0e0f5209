"""A GPTQ checkpoint, in the layout of AutoGPTQ that the model builder and others read.

``qweight [in/8, out]`` holds eight levels in an int32, the lowest bits first; ``qzeros [in/32, out/8]`` the zero points
less one; ``scales [in/32, out]``; ``g_idx`` the block of each input.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from packager.quantize.grid import BLOCK
from packager.quantize.layers import Rounded

PER_WORD = 8
WEIGHTS = "model.safetensors"


def pack_words(levels: torch.Tensor) -> torch.Tensor:
    """Eight rows of 4-bit ``levels`` ``[rows, columns]`` in one row of int32."""
    rows = levels.to(torch.int64).view(-1, PER_WORD, levels.shape[1])
    shifts = torch.arange(0, 4 * PER_WORD, 4).view(1, -1, 1)
    words = (rows << shifts).sum(1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def gptq_tensors(name: str, rounded: Rounded) -> dict[str, torch.Tensor]:
    """The four tensors of one matrix."""
    grid = rounded.grid
    zeros = (grid.zero.squeeze(-1).t().to(torch.int64) - 1) & 0xF
    inputs = rounded.levels.shape[1]
    return {
        f"{name}.qweight": pack_words(rounded.levels.t()).contiguous(),
        f"{name}.qzeros": pack_words(zeros.t()).t().contiguous(),
        f"{name}.scales": grid.scale.squeeze(-1).t().float().contiguous(),
        f"{name}.g_idx": (torch.arange(inputs) // grid.block).to(torch.int32),
    }


def quantization_config(block: int) -> dict[str, Any]:
    """What a configuration says of such tensors."""
    return {"quant_method": "gptq", "bits": 4, "group_size": block, "desc_act": False, "sym": False}


def write_checkpoint(model: Any, rounded: dict[str, Rounded], source: Path, out: Path) -> None:
    """Everything of ``source`` with the weights of ``model``, those of ``rounded`` packed, into ``out``."""
    from safetensors.torch import save_file

    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if owner in rounded and kind == "weight":
            tensors |= gptq_tensors(owner, rounded[owner])
        elif not (tied and name == "lm_head.weight"):
            tensors[name] = tensor.float().contiguous()
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    for path in source.iterdir():
        if path.is_file() and ".safetensors" not in path.name and path.name != "config.json":
            shutil.copyfile(path, out / path.name)
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["quantization_config"] = quantization_config(BLOCK)
    (out / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
