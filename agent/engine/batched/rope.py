"""Finds the length at which a graph changes its rope factors.

Such a graph (Phi-3.5's longrope) keeps two tables of angles and takes the long one as soon as the attention mask is
wider than the model's first training length – for the whole batch, and for keys that were rotated with the short one
before. So a request has to stay on one side of the switch from its first token to its last.
"""

from __future__ import annotations

from pathlib import Path

from agent.engine.runtime_errors import Declined
from contract.onnx.graph import INT64, Graph, Node, OnnxModel, Tensor

INT64_BYTES = 8


def rope_switch(model: OnnxModel, path: Path, mask: str) -> int:
    """The widest mask that still gets the short factors; 0 when the graph has one table only.

    Raises:
        Declined: the graph switches on anything but the width of ``mask``.
    """
    switches = [node for node in model.walk_nodes() if node.op_type == "If"]
    if not switches:
        return 0
    makers = {output: node for node in model.graph.nodes for output in node.outputs}
    found = {_limit(node, makers, model, path, mask) for node in switches}
    if len(found) != 1:
        raise Declined("it switches rope factors at several lengths")
    return found.pop()


def _limit(switch: Node, makers: dict[str, Node], model: OnnxModel, path: Path, mask: str) -> int:
    """``If(Greater(Shape(mask)[1], constant))`` with nothing but tables in its branches; the constant."""
    unknown = Declined("it switches on something that this engine does not know")
    branches = [value for value in switch.attributes.values() if isinstance(value, Graph)]
    if any(node.op_type != "Constant" for branch in branches for node in branch.nodes):
        raise unknown
    greater = makers.get(switch.inputs[0]) if switch.inputs else None
    if greater is None or greater.op_type != "Greater":
        raise unknown
    width, limit = greater.inputs
    gather = makers.get(width)
    if gather is None or gather.op_type != "Gather" or gather.integer("axis") != 0:
        raise unknown
    shape = makers.get(gather.inputs[0])
    if shape is None or shape.op_type != "Shape" or shape.inputs != (mask,) or shape.attributes:
        raise unknown
    if _constant(gather.inputs[1], makers, model, path) != 1:
        raise unknown
    value = _constant(limit, makers, model, path)
    if value is None or value < 1:
        raise unknown
    return value


def _constant(name: str, makers: dict[str, Node], model: OnnxModel, path: Path) -> int | None:
    """A single INT64 that lies in the graph file."""
    tensor = next((tensor for tensor in model.graph.initializers if tensor.name == name), None)
    if tensor is None and (maker := makers.get(name)) is not None and maker.op_type == "Constant":
        value = maker.attributes.get("value")
        tensor = value if isinstance(value, Tensor) else None
    if tensor is None or tensor.data_type != INT64 or tensor.elements != 1 or tensor.inline is None:
        return None
    start, end = tensor.inline
    if end - start != INT64_BYTES:
        return None
    with path.open("rb") as file:
        file.seek(start)
        return int.from_bytes(file.read(INT64_BYTES), "little", signed=True)
