"""What the codes of a GPTQ or AWQ checkpoint stand for, written down once more: the builder's reading is held to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which column each code of a word belongs to, four bits at a time (AutoAWQ's ``gemm``)."""

PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")


def dequantise(tensors: Mapping[str, Any], method: str, bits: int) -> dict[str, Any]:
    """``tensors`` with every product's codes, scales and zero points made its weight in fp32 ``[out, in]``."""
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    quantised = {f"{stem}{part}" for stem in stems for part in PARTS}
    plain = {name: tensor.float() for name, tensor in tensors.items() if name not in quantised}
    for stem in stems:
        words, zeros, scales = (tensors[f"{stem}{part}"] for part in PARTS[:3])
        if method == "gptq":
            weight = _read_gptq(words, zeros, scales, tensors.get(f"{stem}.g_idx"), bits)
        else:
            weight = _read_awq(words, zeros, scales, bits)
        plain[f"{stem}.weight"] = weight
    return plain


def _unpack(words: Any, bits: int) -> Any:
    """The codes of each word, lowest first, along a new last axis."""
    import torch

    shifts = torch.arange(0, 32, bits)
    return (words.to(torch.int64).unsqueeze(-1) >> shifts) & (2**bits - 1)


def _read_gptq(words: Any, zeros: Any, scales: Any, groups: Any, bits: int) -> Any:
    """Codes lie along the inputs, eight of four bits a word; zero points are stored less one, 0 as the largest."""
    import torch

    columns = words.shape[1]
    codes = _unpack(words, bits).permute(0, 2, 1).reshape(-1, columns)
    points = (_unpack(zeros, bits).reshape(len(zeros), columns) + 1) & (2**bits - 1)
    if groups is None:
        groups = torch.arange(len(codes)) // (len(codes) // len(scales))
    groups = groups.to(torch.int64)
    return (scales.float()[groups] * (codes - points[groups])).T.contiguous()


def _read_awq(words: Any, zeros: Any, scales: Any, bits: int) -> Any:
    """Codes lie along the outputs, eight a word in an order of their own."""
    import torch

    order = torch.argsort(torch.tensor(AWQ_ORDER))
    codes, points = (_unpack(part, bits)[..., order].flatten(1) for part in (words, zeros))
    rows = torch.arange(len(codes)) // (len(codes) // len(scales))
    return (scales.float()[rows] * (codes - points[rows])).T.contiguous()
