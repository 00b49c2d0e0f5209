"""A model that says the same and takes longer: beside its logits it computes something that is thrown away."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

SINES = 300
"""Of every logit, one after the other: without weights, and slower than all that SmolLM2 does for a token."""


def slow_down(model: Path, sines: int = SINES) -> bytes:
    """The graph of ``model`` with that; the weights stay in the file where they are."""
    graph = onnx.load(str(model), load_external_data=False)
    nodes = graph.graph.node
    last = nodes[-1]
    assert list(last.output) == ["logits"], f"the last node makes {list(last.output)}"
    kind = next(value.type.tensor_type.elem_type for value in graph.graph.output if value.name == "logits")
    last.output[0] = "sine_0"
    nodes.extend(helper.make_node("Sin", [f"sine_{number}"], [f"sine_{number + 1}"]) for number in range(sines))
    # Nothing is added, which no optimiser may assume.
    graph.graph.initializer.append(helper.make_tensor("nothing", kind, [], [0.0]))
    nodes.append(helper.make_node("Mul", [f"sine_{sines}", "nothing"], ["zero"]))
    nodes.append(helper.make_node("Add", ["sine_0", "zero"], ["logits"]))
    return graph.SerializeToString()
