"""The rotary tables that a graph holds, against those of transformers: role by role, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.bundle.genai_config import GenaiFacts
from contract.onnx.graph import BFLOAT16, FLOAT, FLOAT16, Graph, Node, OnnxModel, Tensor
from contract.onnx.wire import read_graph_file
from packager.graph.rope import LONG, SHORT, SINGLE, RopeFacts, RopeRows

Table = npt.NDArray[np.float32]

TOLERANCE = {FLOAT: 1e-4, FLOAT16: 2e-3, BFLOAT16: 1e-2}
"""By the type of the tables: what storing them in it rounds away, times a scaling of up to two."""

BRANCHES = {"then_branch": LONG, "else_branch": SHORT}
"""The graph asks whether the mask is wider than what the model was first trained on."""

_ROLES = {"_global": "full_attention", "_local": "sliding_attention"}
"""By the end of the table's name."""


def compare_rope(facts: RopeFacts, config: GenaiFacts, folder: Path) -> list[str]:
    """Where the tables of the graph in ``folder`` differ from ``facts``, each as half a sentence."""
    model = read_graph_file(folder / config.filename)
    found: list[str] = []
    stored = _find_tables(model, folder / config.filename, facts)
    for wanted in facts.tables:
        for kind, rows in (("cos", wanted.cos), ("sin", wanted.sin)):
            table = stored.get((wanted.role, kind))
            found += _compare_table(f"the {kind} table for {wanted.role}", table, wanted, np.array(rows, np.float32))
    layers = _layers(model)
    if layers != facts.layers:
        pairs = [pair for pair in zip(layers, facts.layers, strict=False) if pair[0] != pair[1]]
        built, asked = pairs[0] if pairs else (f"{len(layers)} layers", f"{len(facts.layers)}")
        found.append(f"layers rotate by the tables for {built} instead of {asked}")
    return found


def _compare_table(what: str, table: tuple[Table, float] | None, wanted: RopeRows, rows: Table) -> list[str]:
    if table is None:
        return [f"{what} is missing"]
    values, tolerance = table
    if values.shape[1] != rows.shape[1]:
        return [f"{what} rotates {values.shape[1]} pairs instead of {rows.shape[1]}"]
    if len(values) < wanted.length:
        return [f"{what} has {len(values)} positions instead of {wanted.length}"]
    difference = np.abs(values[wanted.positions] - rows).max(axis=1)
    if difference.max() > tolerance:
        index = int(difference.argmax())
        return [f"{what} is off by {difference[index]:.3g} at position {wanted.positions[index]}"]
    return []


def _find_tables(model: OnnxModel, path: Path, facts: RopeFacts) -> dict[tuple[str, str], tuple[Table, float]]:
    switching = {table.role for table in facts.tables} == {LONG, SHORT}
    context = max(table.length for table in facts.tables) if facts.tables else 0
    found: dict[tuple[str, str], tuple[Table, float]] = {}
    for role, name, tensor in _walk(model):
        kind = "cos" if "cos_cache" in name else "sin"
        values = _read(tensor, path)
        if switching and role == SINGLE:
            # Providers without branches: one table, the long set before the short one.
            found[LONG, kind] = values[:context], TOLERANCE[tensor.data_type]
            found[SHORT, kind] = values[context:], TOLERANCE[tensor.data_type]
        else:
            found[role, kind] = values, TOLERANCE[tensor.data_type]
    return found


def _walk(model: OnnxModel) -> Iterator[tuple[str, str, Tensor]]:
    for tensor in model.graph.initializers:
        if _is_table(tensor.name) and tensor.data_type in TOLERANCE:
            yield _role(tensor.name), tensor.name, tensor
    for node in model.graph.nodes:
        for branch, role in BRANCHES.items():
            inner = node.attributes.get(branch)
            if node.op_type != "If" or not isinstance(inner, Graph):
                continue
            for tensor in inner.initializers:
                if _is_table(tensor.name) and tensor.data_type in TOLERANCE:
                    yield role, tensor.name, tensor
            for constant in inner.nodes:
                value = constant.attributes.get("value")
                if constant.op_type == "Constant" and isinstance(value, Tensor) and _is_table(constant.outputs[0]):
                    yield role, constant.outputs[0], value


def _is_table(name: str) -> bool:
    return "cos_cache" in name or "sin_cache" in name


def _role(name: str) -> str:
    return next((role for end, role in _ROLES.items() if name.endswith(end)), SINGLE)


def _read(tensor: Tensor, path: Path) -> Table:
    where, start = path, 0
    if tensor.external is not None:
        where, start = path.parent / tensor.external.location, tensor.external.offset
    elif tensor.inline is not None:
        start = tensor.inline[0]
    stored: Any = {FLOAT: np.float32, FLOAT16: np.float16, BFLOAT16: np.uint16}[tensor.data_type]
    values = np.fromfile(where, dtype=stored, count=tensor.elements, offset=start)
    if tensor.data_type == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    table: Table = values.astype(np.float32).reshape(tensor.dims)
    return table


def _layers(model: OnnxModel) -> list[str]:
    """The role of each attention layer's tables, in order."""
    makers = {output: node for node in model.graph.nodes for output in node.outputs}
    found = []
    for node in model.graph.nodes:
        if node.op_type not in ("GroupQueryAttention", "MultiHeadAttention", "Attention", "PagedAttention"):
            continue
        if node.integer("do_rotary"):
            table = next((name for name in node.inputs if _is_table(name)), "")
        else:
            outside = _turned_outside(makers.get(node.inputs[0]), makers)
            table = "" if outside is None else next((name for name in outside.inputs if _is_table(name)), "")
        maker = makers.get(table)
        if not table:
            found.append("none")
        else:
            found.append(f"{LONG}+{SHORT}" if maker is not None and maker.op_type == "If" else _role(table))
    return found


def _turned_outside(node: Node | None, makers: dict[str, Node]) -> Node | None:
    """The rotary embedding that makes an attention's query, past norms, reshapes and casts."""
    while node is not None and node.op_type in ("Reshape", "Transpose", "Cast", "SimplifiedLayerNormalization"):
        node = makers.get(node.inputs[0])
    return node if node is not None and node.op_type in ("RotaryEmbedding", "MRotaryEmbedding") else None
