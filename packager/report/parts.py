"""Where a graph's bytes are: by layer and by what they hold."""

from __future__ import annotations

import re

from contract.onnx.graph import OnnxModel, Tensor

KINDS = ("weights", "scales", "zero points", "plain")
"""Packed integers, their scales and zero points, and everything that is not quantised."""

_LAYER = re.compile(r"\blayers?\.(\d+)\.")


def part_of(name: str, layers: int) -> str:
    """The part that a tensor belongs to: a layer's number, ``embedding``, ``head`` or ``other``."""
    found = _LAYER.search(name)
    if found is not None and int(found[1]) < layers:
        return found[1]
    if "lm_head" in name:
        return "head"
    if "embed" in name:
        return "embedding"
    return "other"


def kind_of(tensor: Tensor) -> str:
    """One of :data:`KINDS`, by the names that the builder gives and the element type."""
    name = tensor.name.lower()
    if name.endswith(("_scales", ".scales", "_scale")):
        return "scales"
    if name.endswith(("_zp", "_zero_points", "_zeropoint", "_zeros", ".qzeros")):
        return "zero points"
    return "weights" if tensor.data_type in (2, 3, 21, 22) else "plain"


def bytes_by_part(model: OnnxModel, layers: int) -> dict[str, dict[str, int]]:
    """Bytes of the initializers by part, in the order they run, and kind."""
    order = ["embedding", *map(str, range(layers)), "head", "other"]
    found = {part: dict.fromkeys(KINDS, 0) for part in order}
    for tensor in model.walk_tensors():
        found[part_of(tensor.name, layers)][kind_of(tensor)] += tensor.needed_bytes or 0
    return {part: kinds for part, kinds in found.items() if any(kinds.values())}
