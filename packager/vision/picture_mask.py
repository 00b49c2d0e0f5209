"""Gemma 3's mask in a decoder of the model builder: tokens of one picture see each other, whatever their order.

The builder's attention looks back only. A mask that says what each token sees is worked out once, from the tokens'
numbers, and every layer's attention is told to go by it: one for layers that look at everything, one for those with
a window, as ``create_masks_for_vision_model`` of transformers has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from contract.onnx.attention import WINDOW_TENSOR, WINDOWED_MASK
from packager.vision.graph_writer import Nodes, value

WHOLE_MASK = "pictures.whole_mask"
ATTENTION_BIAS = 10
"""Which input of GroupQueryAttention is added to its scores."""

UNSEEN = float(np.finfo(np.float32).min) / 2
"""Added to a score, far below every score, and still a number after that."""


def show_pictures_whole(file: Path, token: int) -> None:
    """Change the decoder in ``file``, which is given tokens' numbers as well then; ``token`` stands for pictures.

    One that was changed before stays as it is.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(file), load_external_data=False)
    graph = model.graph
    if any(each.name == "input_ids" for each in graph.input):
        return
    windows = set()
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            windows.add(_go_by_mask(node))
    windows.discard(-1)
    assert len(windows) <= 1  # a model has one window, in some of its layers
    nodes = Nodes()
    for name, number in (("zero", 0), ("one", 1), ("token", token)):
        graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), f"pictures.{name}"))
    for name, numbers in (("first", [0]), ("second", [1]), ("last", [-1])):
        graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), f"pictures.{name}"))
    for name, score in (("seen", 0.0), ("unseen", UNSEEN)):
        graph.initializer.append(numpy_helper.from_array(np.array(score, np.float32), f"pictures.{name}"))
    seen, rows, columns = _write_seen(nodes)
    _write_mask(nodes, seen, WHOLE_MASK)
    for window in windows:
        nodes.node("Constant", name=WINDOW_TENSOR, value_int=window)
        edge = nodes.node("Sub", rows, WINDOW_TENSOR, name="pictures.out_of_sight")
        near = nodes.node("Greater", columns, edge, name="pictures.near")
        _write_mask(nodes, nodes.node("And", seen, near, name="pictures.near_seen"), WINDOWED_MASK)
    graph.input.append(value("input_ids", "INT64", ["batch_size", "sequence_length"]))
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes.nodes, *own])
    file.write_bytes(model.SerializeToString(deterministic=True))


def _go_by_mask(node: Any) -> int:
    """Let one attention go by the mask alone; the window that it had, -1 for none."""
    from onnx import helper

    window = next((each.i for each in node.attribute if each.name == "local_window_size"), -1)
    kept = [each for each in node.attribute if each.name not in ("local_window_size", "causal")]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("causal", 0)])
    node.input.extend([""] * (ATTENTION_BIAS + 1 - len(node.input)))
    node.input[ATTENTION_BIAS] = WINDOWED_MASK if window > 0 else WHOLE_MASK
    return int(window)


def _write_seen(nodes: Nodes) -> tuple[str, str, str]:
    """What each new token sees of all, and the places of new ones, as a column, and of all.

    Prompts in one batch end each where the ones of its own row of the attention mask do.
    """

    def node(operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        own = [each if each.startswith("pictures.") or each in GIVEN else f"pictures.{each}" for each in inputs]
        return nodes.node(operator, *own, name=f"pictures.{name}", **attributes)

    new = node("Shape", "input_ids", name="new", start=1, end=2)
    count = node("Squeeze", new, name="count")
    total = node("Squeeze", node("Shape", "attention_mask", name="all", start=1, end=2), name="total")
    length = node("ReduceSum", "attention_mask", "second", name="length", keepdims=1)
    past = node("Sub", length, count, name="past")
    steps = node("Range", "zero", count, "one", name="steps")
    rows = node("Unsqueeze", node("Add", past, steps, name="own_places"), "last", name="rows")
    columns = node("Range", "zero", total, "one", name="columns")
    before = node("LessOrEqual", columns, rows, name="before")
    # Pictures are numbered from one by where they begin; words are of none.
    of_picture = node("Equal", "input_ids", "token", name="of_picture")
    marked = node("Cast", of_picture, name="marked", to=7)
    edge = node("Mul", node("Slice", marked, "first", "second", "second", name="edge"), "zero", name="nothing")
    shifted = node("Concat", edge, node("Slice", marked, "first", "last", "second", name="early"), name="late", axis=1)
    starts = node("Greater", marked, shifted, name="starts")
    numbered = node("CumSum", node("Cast", starts, name="begun", to=7), "one", name="numbered")
    own = node("Mul", numbered, marked, name="own")
    step = node("Sub", columns, past, name="step")
    known = node("Clip", step, "zero", node("Sub", count, "one", name="last_step"), name="known_step")
    new_one = node("Equal", step, known, name="new_one")
    numbers = node("GatherElements", own, known, name="numbers", axis=1)
    everything = node("Where", new_one, numbers, "zero", name="everything")
    first = node("Unsqueeze", own, "last", name="asking")
    second = node("Unsqueeze", everything, "second", name="asked")
    same = node("Equal", first, second, name="same_number")
    shown = node("Greater", first, "zero", name="asking_picture")
    together = node("And", same, shown, name="together")
    return node("Or", before, together, name="seen_by"), rows, columns


GIVEN = ("input_ids", "attention_mask")


def _write_mask(nodes: Nodes, seen: str, name: str) -> None:
    scores = nodes.node("Where", seen, "pictures.seen", "pictures.unseen", name=f"{name}_scores")
    nodes.node("Unsqueeze", scores, "pictures.second", name=name)
