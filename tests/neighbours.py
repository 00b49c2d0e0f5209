"""A bundle whose graph does to rows of a batch what no decoder should: each sees a share of the others' logits.

For what has to be found out by trying: every check of the graph passes, its own runtime serves it, and the batched
engine's self-test finds on any processor that requests would change each other.
"""

from __future__ import annotations

import shutil
from pathlib import Path

MUCH, LITTLE = 1.0, 1e-6
"""Shares: one that is declined, and one that is taken for rounding unless every bit is asked for."""


def make_neighbourly(bundle: Path, target: Path, share: float = MUCH) -> Path:
    """A copy of ``bundle`` in ``target`` with another graph; its manifest does not fit it any more."""
    import onnx
    from onnx import helper

    shutil.copytree(bundle, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    graph_file = target / "model.onnx"
    model = onnx.load(str(graph_file), load_external_data=False)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["logits_alone" if name == "logits" else name for name in node.output]
    for name, value in (("share", share), ("first_axis", [0])):
        kind = onnx.TensorProto.FLOAT if name == "share" else onnx.TensorProto.INT64
        values = [value] if name == "share" else value
        graph.initializer.append(helper.make_tensor(name, kind, [1], values))
    graph.node.extend(
        [
            helper.make_node("ReduceSum", ["logits_alone", "first_axis"], ["logits_of_all"], keepdims=1),
            helper.make_node("Mul", ["logits_of_all", "share"], ["logits_shared"]),
            helper.make_node("Add", ["logits_alone", "logits_shared"], ["logits"]),
        ]
    )
    onnx.save(model, str(graph_file))
    return target
