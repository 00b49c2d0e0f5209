"""Names, shapes and types of the weights in a checkpoint's files, held against those of the model that it claims to be.

transformers fills a weight that is missing in the files with random numbers and leaves out what the model has no place
for, each with no more than a line in a log; source and bundle then agree on a model that nobody trained. So every
difference is a refusal, before anything is built. Pure: what the model has comes from
:mod:`packager.evaluate.reference`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from contract.errors import BuildRefused
from packager.sources.weights import StoredTensor

HARMLESS = re.compile(r"(?:^|\.)rotary_emb\.(?:inv_freq|cos_cached|sin_cached)$|(?:^|\.)attn\.masked_bias$")
"""Buffers that older versions of transformers saved and that every version computes from the configuration."""

PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
PACKED_TYPES = ("I32",)
"""GPTQ and AWQ put their codes into words of 32 bits."""

MAX_LISTED = 40
"""Names of one kind in one refusal; layers that lack the same are one name."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class Mismatch(Struct, frozen=True):
    """One weight whose shape in the files, or type, is not the model's."""

    name: str
    stored: str
    wanted: str


class WeightFaults(Struct, frozen=True):
    """Everything by which the files differ from the model."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    mismatched: Sequence[Mismatch] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)


def drop_harmless(names: Iterable[str]) -> list[str]:
    """``names`` without those that may be in a file although no model has them."""
    return sorted(name for name in names if HARMLESS.search(name) is None)


def find_odd_types(tensors: Iterable[StoredTensor], packed: frozenset[str] = frozenset()) -> list[Mismatch]:
    """Tensors whose numbers are of a type that a plain weight never has; ``packed`` ones hold codes."""
    return [
        Mismatch(tensor.name, tensor.dtype, " or ".join(PACKED_TYPES if tensor.name in packed else PLAIN_TYPES))
        for tensor in tensors
        if tensor.dtype not in (PACKED_TYPES if tensor.name in packed else PLAIN_TYPES)
        and HARMLESS.search(tensor.name) is None
    ]


def compare_quantised(
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, Sequence[int]],
    tied: Mapping[str, str],
    *,
    method: str,
    bits: int,
    group: int,
    zero_biases: Collection[str] = (),
) -> WeightFaults:
    """The files of a GPTQ or AWQ checkpoint against ``wanted``, names and shapes of the model before it was quantised.

    A product's weight may be stored as it was or as codes, scales and zero points, each with its own shape. AutoGPTQ
    writes a bias for every product, the model's own having none: those of ``zero_biases`` change nothing.
    """
    missing: list[str] = []
    mismatched: list[Mismatch] = []
    used: set[str] = set()
    packed: set[str] = set()
    for name, shape in wanted.items():
        stem = name.removesuffix(".weight")
        parts = _parts(stem, shape, method=method, bits=bits, group=group)
        if name in stored or len(shape) != 2 or not any(part in stored for part in parts):
            parts = {name: tuple(shape)}
        else:
            packed.update((f"{stem}.qweight", f"{stem}.qzeros", f"{stem}.g_idx"))
        used.update(parts)
        for part, size in parts.items():
            if part not in stored:
                optional = part.endswith(".g_idx") and method == "awq"
                if not optional and not (part in tied and tied[part] in stored):
                    missing.append(part)
            elif stored[part].shape != size:
                mismatched.append(Mismatch(part, shape_text(stored[part].shape), shape_text(size)))
    return WeightFaults(
        missing=missing,
        unexpected=drop_harmless(set(stored) - used - set(zero_biases)),
        mismatched=mismatched + find_odd_types(stored.values(), frozenset(packed)),
    )


def _parts(stem: str, shape: Sequence[int], *, method: str, bits: int, group: int) -> dict[str, tuple[int, ...]]:
    if len(shape) != 2:
        return {}
    rows, columns = shape
    group = columns if group == -1 else group
    groups = -(-columns // group)
    parts = {
        f"{stem}.qweight": (columns * bits // 32, rows) if method == "gptq" else (columns, rows * bits // 32),
        f"{stem}.qzeros": (groups, rows * bits // 32),
        f"{stem}.scales": (groups, rows),
    }
    return parts | ({f"{stem}.g_idx": (columns,)} if method == "gptq" else {})


def refuse_wrong_weights(architecture: str, faults: WeightFaults) -> None:
    """Refuse a checkpoint whose files are not the weights of its model.

    Raises:
        BuildRefused: with every weight that is missing, unexpected or mismatched.
    """
    if not faults:
        return
    problems = []
    if faults.missing:
        problems.append(f"{len(faults.missing)} missing in the files: {_listed(faults.missing)}")
    if faults.unexpected:
        problems.append(f"{len(faults.unexpected)} that the model has no place for: {_listed(faults.unexpected)}")
    if faults.mismatched:
        listed = [
            f"{each.name} is {each.stored} in the files and {each.wanted} in the model" for each in faults.mismatched
        ]
        problems.append(f"{len(listed)} mismatched: {_listed(listed)}")
    raise BuildRefused(
        f"the weight files are not those of the {architecture} that config.json describes: {'; '.join(problems)}"
        f"{_advice(faults)}"
    )


def _advice(faults: WeightFaults) -> str:
    for each in faults.mismatched:
        if "embed" in each.name and each.stored[:1] == "[" and each.wanted[:1] == "[":
            rows = each.stored[1:].split(",")[0]
            return f"; if the embedding was resized, set vocab_size to {rows} in config.json"
    if faults.missing and faults.unexpected:
        return "; if the names only lack or have a prefix, save the checkpoint again from its own model class"
    return "; fetch the checkpoint again, or save it again from its own model class"


def _listed(names: Sequence[str]) -> str:
    """``names``, those of several layers as one with the layers' numbers."""
    layers: dict[str, list[int]] = {}
    for name in names:
        found = _NUMBER.search(name)
        pattern = name if found is None else f"{name[: found.start()]}\0{name[found.end() :]}"
        layers.setdefault(pattern, []).extend([] if found is None else [int(found[0])])
    listed = [pattern.replace("\0", _ranges(numbers)) for pattern, numbers in layers.items()]
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return ", ".join(listed[:MAX_LISTED]) + more


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def shape_text(shape: Sequence[int]) -> str:
    """How messages write a shape."""
    return f"[{', '.join(map(str, shape))}]"
