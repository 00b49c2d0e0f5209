"""Rounding learned by gradient: the auto-round library (SignRound, arxiv.org/abs/2309.05516), layer by layer.

The library is the ``calibration`` extra. It decides levels, scales and zero points of the decoder's matrices; lm_head,
tuning and packing are ours, as for GPTQ.
"""

from __future__ import annotations

from typing import Any

import torch

from packager.quantize.grid import BLOCK, LEVELS, Grid
from packager.quantize.layers import Rounded

STEPS = 40
"""Gradient steps a layer; the library's 200 cost five times the time for little on models this size."""

BATCH = 8
SEED = 20


def learn_rounding(model: Any, tokenizer: Any, ids: torch.Tensor) -> dict[str, Rounded]:
    """What auto-round makes of every Linear in the decoder layers of ``model``, which it uses up."""
    from auto_round import AutoRound

    samples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    with torch.enable_grad():
        learned, _ = AutoRound(
            model,
            tokenizer,
            bits=4,
            group_size=BLOCK,
            sym=False,
            iters=STEPS,
            dataset=samples,
            nsamples=len(samples),
            seqlen=ids.shape[1],
            batch_size=BATCH,
            seed=SEED,
            scale_dtype="fp32",
            device_map="cpu",
            enable_torch_compile=False,
            low_cpu_mem_usage=False,
        ).quantize()
    return {name: _rounded(module) for name, module in learned.named_modules() if hasattr(module, "zp")}


def _rounded(linear: Any) -> Rounded:
    """Levels of a Linear that holds what it multiplies with, beside the scales and zero points of its blocks."""
    shape = len(linear.weight), -1, 1
    grid = Grid(scale=linear.scale.float().reshape(shape), zero=linear.zp.float().reshape(shape), low=0, pinned=None)
    levels = torch.round(linear.weight.float() / grid.spread(grid.scale)) + grid.spread(grid.zero)
    return Rounded(levels.clamp(0, LEVELS - 1), grid)
