"""What a build writes while it runs, from the plan and the model's shape; and whether its parts can share it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from packager.build.plan import AUTO, CALIBRATED, GPTQ_FAMILIES, BuildPlan, goes_layer_by_layer
from packager.evaluate.source import DEFAULT_TOKENS, EVAL_TOKENS
from packager.sources.shape import ModelShape

TUNED_BYTES = 4
"""For each parameter, where scales are tuned: levels and scales of each stage, Adam's state twice, and the result."""

PACKED_WORDS = 0.5
"""Bytes of a weight in a GPTQ checkpoint, beside the scales."""

PROOF_BYTES, PACKED_PROOF_BYTES = 4, 13
"""Of a weight of the layers that are computed twice: their graph in fp32, beside them in the source's type; and where
they are taken out of a GPTQ checkpoint, in all (6.17 GB were measured where 627 million parameters were rounded)."""

VIEW_BYTES = 2
"""Of a logit of the source's."""


def build_disk_bytes(plan: BuildPlan, shape: ModelShape, stored: int, *, linked: bool) -> tuple[int, int]:
    """Bytes in the cache, and where a bundle of ``stored`` bytes goes; ``linked``: a file can be in both.

    A graph with an INT8 cache shares its weights with the one that its scales were measured on, but for a model that
    sees, whose decoder reads no table.
    """
    second = 0 if plan.kv == "float" else stored if plan.sees else shape.switching_rope_bytes
    asked = VIEW_BYTES * shape.vocabulary * (DEFAULT_TOKENS if plan.quality.eval_file is None else EVAL_TOKENS)
    staged = 0 if linked else 2 if plan.kv == AUTO else 1
    return stored + second + asked + _calibrated_bytes(plan, shape), staged * stored


def proof_disk_bytes(plan: BuildPlan, shape: ModelShape, weights: int) -> int:
    """Bytes in the cache while so many ``weights`` of some layers are computed twice: of the source before anything
    else is there, and of what was rounded beside all of that.
    """
    plain = ((2 if shape.half else 4) + PROOF_BYTES) * weights
    rounded = _calibrated_bytes(plan, shape)
    return rounded + (PACKED_PROOF_BYTES * weights if rounded and _is_packed(plan, shape) else plain)


def _is_packed(plan: BuildPlan, shape: ModelShape) -> bool:
    """Whether what was rounded becomes a GPTQ checkpoint."""
    return goes_layer_by_layer(plan, shape.parameters) and shape.family in GPTQ_FAMILIES and not plan.adapter_slots


def _calibrated_bytes(plan: BuildPlan, shape: ModelShape) -> int:
    """The checkpoint between rounding and building, and what rounding keeps to go on from."""
    if plan.quantizer not in CALIBRATED:
        return 0
    if not goes_layer_by_layer(plan, shape.parameters):
        return TUNED_BYTES * shape.parameters
    if not _is_packed(plan, shape):
        return (2 if shape.half else 4) * shape.parameters
    plain = shape.table + shape.vocabulary * shape.hidden
    scale = (4 + PACKED_WORDS) / plan.block_size
    return int((PACKED_WORDS + scale) * (shape.parameters - plain)) + 4 * plain


def can_link(source: Path, target: Path) -> bool:
    """Whether a file below ``source`` can be one below ``target`` too: neither need exist yet."""
    here, there = (next(path for path in (each, *each.parents) if path.is_dir()) for each in (source, target))
    try:
        with tempfile.NamedTemporaryFile(prefix=".link-", dir=here) as file:
            other = there / f"{Path(file.name).name}-too"
            os.link(file.name, other)
            other.unlink()
    except OSError:
        return False
    return True
