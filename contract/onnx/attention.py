"""What a decoder's graph says of its attentions."""

from __future__ import annotations

from collections.abc import Iterable

from contract.onnx.graph import Node

WINDOWED_MASK, WINDOW_TENSOR = "pictures.windowed_mask", "pictures.window"
"""The mask of layers with a window where tokens of a picture see each other, and how long the window is."""


def attention_window(node: Node, nodes: Iterable[Node]) -> int:
    """How far back the attention ``node``, one of ``nodes``, looks: by its own words, or by the mask that it is given;
    -1 where it looks at everything.
    """
    if WINDOWED_MASK in node.inputs:
        return next((each.integer("value_int", -1) for each in nodes if WINDOW_TENSOR in each.outputs), -1)
    return node.integer("local_window_size", -1)
