"""Where a graph takes a LoRA adapter: beside a product, a second way through two narrow matrices.

A slot is ``y = product(x) + (x A) B``. Its A ``[K, r]`` and B ``[r, N]`` are graph inputs with a default of rank 0, so
that without an adapter the second way adds zeros and the product's own result stands, bit for bit. No other input of a
graph may have a default: whoever names it at run time would change what was signed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from contract.errors import BundleRefused
from contract.onnx.graph import FLOAT, Node, OnnxModel, Tensor, Value
from contract.reasons import Reason

CAPABILITY = "adapters"
"""Stands in ``model.capabilities`` of a bundle whose graph has slots."""

_INPUT = re.compile(r"(model\.layers\.[0-9]{1,4}\.[a-z0-9_.]{1,64})\.lora_([AB])\.weight")
_PRODUCTS = ("MatMul", "MatMulNBits")


class Slot(Struct, frozen=True):
    """One place for a pair of matrices: ``first`` is ``[width_in, rank]``, ``second`` is ``[rank, width_out]``."""

    name: str
    width_in: int
    width_out: int

    @property
    def first(self) -> str:
        return f"{self.name}.lora_A.weight"

    @property
    def second(self) -> str:
        return f"{self.name}.lora_B.weight"


def _refuse(what: str) -> BundleRefused:
    return BundleRefused(Reason.GRAPH_INVALID, f"the graph is not allowed: {what}")


def find_slots(model: OnnxModel) -> dict[str, Slot]:
    """The slots of a graph, by name; empty when no input has a default.

    Raises:
        BundleRefused: GRAPH_INVALID, an input with a default that is not exactly half of a slot.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializers}
    inputs = {value.name: value for value in model.graph.inputs if value.name in tensors}
    if not inputs:
        return {}
    stems: dict[str, set[str]] = {}
    for name in inputs:
        match = _INPUT.fullmatch(name)
        if match is None:
            raise _refuse(f"its input {name[:80]!r} has a default and is no place for an adapter")
        stems.setdefault(match[1], set()).add(match[2])
    uses = _Uses(model)
    slots: dict[str, Slot] = {}
    ranks: set[str] = set()
    for stem, letters in stems.items():
        if letters != {"A", "B"}:
            raise _refuse(f"the place for an adapter {stem!r} has only one half")
        slot = _slot(stem, inputs, tensors, ranks)
        _check_way(slot, uses, tensors)
        slots[stem] = slot
    return slots


def _slot(stem: str, inputs: Mapping[str, Value], tensors: Mapping[str, Tensor], ranks: set[str]) -> Slot:
    """The widths of one slot, its rank left open by a name of its own: shared names tie buffers together."""
    halves = [f"{stem}.lora_{letter}.weight" for letter in "AB"]
    shapes = [inputs[name].dims for name in halves]
    defaults = [tensors[name] for name in halves]
    (width_in, rank), (again, width_out) = (shape if len(shape) == 2 else (None, None) for shape in shapes)
    sound = (
        isinstance(width_in, int)
        and isinstance(width_out, int)
        and isinstance(rank, str)
        and rank == again
        and rank not in ranks
        and all(inputs[name].elem_type == FLOAT for name in halves)
        and all(default.data_type == FLOAT and default.external is None for default in defaults)
        and [default.dims for default in defaults] == [(width_in, 0), (0, width_out)]
    )
    if not sound:
        raise _refuse(f"the place for an adapter {stem!r} is not a pair of fp32 matrices with a default of rank 0")
    assert isinstance(width_in, int) and isinstance(width_out, int) and isinstance(rank, str)
    ranks.add(rank)
    return Slot(stem, width_in, width_out)


class _Uses:
    """Who makes and who reads a value, subgraphs and functions included."""

    def __init__(self, model: OnnxModel) -> None:
        self.makers: dict[str, Node] = {}
        self.readers: dict[str, list[Node]] = {}
        for node in model.walk_nodes():
            for name in node.outputs:
                self.makers[name] = node
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.outputs}

    def only_reader(self, name: str) -> Node | None:
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def _check_way(slot: Slot, uses: _Uses, tensors: Mapping[str, Tensor]) -> None:
    first, second = uses.only_reader(slot.first), uses.only_reader(slot.second)
    if not (
        first is not None
        and second is not None
        and _is_plain(first, "MatMul")
        and _is_plain(second, "MatMul")
        and first.inputs[1] == slot.first
        and second.inputs == (first.outputs[0], slot.second)
        and uses.only_reader(first.outputs[0]) is second
    ):
        raise _refuse(f"the place for an adapter {slot.name!r} is not a product with A and then with B")
    total = uses.only_reader(second.outputs[0])
    product = None
    if total is not None and _is_plain(total, "Add") and total.inputs[1] == second.outputs[0]:
        product = uses.makers.get(total.inputs[0])
    if (
        product is None
        or product.op_type not in _PRODUCTS
        or product.inputs[0] != first.inputs[0]
        or uses.only_reader(product.outputs[0]) is not total
        or _widths(product, tensors) != (slot.width_in, slot.width_out)
    ):
        raise _refuse(f"the place for an adapter {slot.name!r} does not lie beside a product of its widths")


def _is_plain(node: Node, op_type: str) -> bool:
    return node.op_type == op_type and node.domain == "" and len(node.inputs) == 2 and len(node.outputs) == 1


def _widths(product: Node, tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    if product.op_type == "MatMulNBits":
        return product.integer("K"), product.integer("N")
    weight = tensors.get(product.inputs[1])
    return (weight.dims[0], weight.dims[1]) if weight is not None and len(weight.dims) == 2 else None
