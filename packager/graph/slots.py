"""Giving a built graph its places for adapters (:mod:`contract.bundle.adapter_slots`), and filling them from a LoRA.

The builder has no such thing: its ``adapter_path`` bakes one adapter in as constants. Here every product of a layer
gets two narrow matrices beside it, of rank 0 until an adapter brings its own; 0 is added then, and the product's
result stands as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from contract.bundle.adapter_slots import Slot
from contract.errors import BuildRefused

_PRODUCT = re.compile(r"/(model/layers\.[0-9]+/(?:attn|mlp)/[a-z0-9_]+)/MatMul(?:_Q[48])?")

GROUPS: tuple[tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]], ...] = (
    (
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.qkv_proj",)),
        (("attn.qkv_proj",), ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
    ),
    ((("self_attn.o_proj",), ("self_attn.dense",)), (("attn.o_proj",),)),
    (
        (("mlp.gate_proj", "mlp.up_proj"), ("mlp.gate_up_proj",)),
        (("mlp.gate_up_proj",), ("mlp.gate_proj", "mlp.up_proj")),
    ),
    ((("mlp.down_proj",),), (("mlp.down_proj",),)),
    ((("mlp.fc1",),), (("mlp.fc1",),)),
    ((("mlp.fc2",),), (("mlp.fc2",),)),
)
"""Modules that read the same input, as checkpoints and as graphs cut their outputs, side by side in this order."""


class Block(Struct, frozen=True):
    """A piece of one LoRA pair in one slot: columns ``start:end`` of its B go to columns ``at:`` of the slot's."""

    first: str
    second: str
    start: int
    end: int
    at: int


def slot_name(product: str) -> str | None:
    """The name of the slot beside the node ``product``; None for what gets none (the lm_head)."""
    match = _PRODUCT.fullmatch(product)
    return None if match is None else match[1].replace("/", ".")


def add_slots(graph_file: Path) -> None:
    """Rewrite ``graph_file`` so that every product of a layer has a slot; its external data stays as it is."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(graph_file), load_external_data=False)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        nodes.append(node)
        stem = slot_name(node.name)
        if stem is None or node.op_type not in ("MatMul", "MatMulNBits"):
            continue
        if node.op_type == "MatMulNBits":
            sizes = {entry.name: entry.i for entry in node.attribute}
            widths = (sizes["K"], sizes["N"])
        elif node.input[1] in weights:
            widths = tuple(weights[node.input[1]].dims)
        else:
            continue
        slot, prefix, rank = Slot(stem, *widths), "/" + stem.replace(".", "/"), f"lora_rank_{len(nodes)}"
        result, product = node.output[0], f"{prefix}/base/output_0"
        node.output[0] = product
        for name, dims, shape in (
            (slot.first, (slot.width_in, 0), (slot.width_in, rank)),
            (slot.second, (0, slot.width_out), (rank, slot.width_out)),
        ):
            graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, dims, b"", raw=True))
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        narrow, change = f"{prefix}/lora_A/output_0", f"{prefix}/lora_B/output_0"
        nodes += [
            helper.make_node("MatMul", [node.input[0], slot.first], [narrow], name=f"{prefix}/lora_A/MatMul"),
            helper.make_node("MatMul", [narrow, slot.second], [change], name=f"{prefix}/lora_B/MatMul"),
            helper.make_node("Add", [product, change], [result], name=f"{prefix}/lora/Add"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(graph_file))


def assign_slots(
    pairs: Mapping[str, tuple[str, str]], widths: Mapping[str, int], slots: Mapping[str, Slot]
) -> dict[str, list[Block]]:
    """Which pair goes where, by slot: ``pairs`` by the weight they change, ``widths`` of all of the base's weights.

    Raises:
        BuildRefused: a pair changes something that has no slot.
    """
    found: dict[str, list[Block]] = {}
    for target, (first, second) in sorted(pairs.items(), key=lambda item: item[0]):
        prefix, start, group = _locate(target, widths)
        end = start + widths[target]
        cut = next((names for names in group if all(f"{prefix}.{name}" in slots for name in names)), None)
        if cut is None:
            raise BuildRefused(f"the base bundle has no place for an adapter of {target!r}; merge it (--merge-adapter)")
        left = 0
        for name in cut:
            slot = slots[f"{prefix}.{name}"]
            right = left + slot.width_out
            if start < right and end > left:
                block = Block(first, second, max(0, left - start), min(end, right) - start, max(0, start - left))
                found.setdefault(slot.name, []).append(block)
            left = right
    return found


def _locate(target: str, widths: Mapping[str, int]) -> tuple[str, int, tuple[tuple[str, ...], ...]]:
    """The layer of a weight, its first column among the modules that read the same input, and how graphs cut these."""
    match = re.fullmatch(r"(model\.layers\.[0-9]+)\.([a-z0-9_.]+)\.weight", target)
    if match is not None:
        for sources, cuts in GROUPS:
            for names in sources:
                if match[2] not in names:
                    continue
                before = [f"{match[1]}.{name}.weight" for name in names[: names.index(match[2])]]
                if all(name in widths for name in before):
                    return match[1], sum(widths[name] for name in before), cuts
    raise BuildRefused(f"there is no place beside a running model for what changes {target!r}; use --merge-adapter")
