"""Reading a produced graph back and holding it against what was asked for.

The builder's own log is no proof: it ignores unknown options, drops sliding windows and leaves tables in fp32. This
looks at the file that will run.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from contract.bundle.adapter_slots import find_slots
from contract.bundle.genai_config import CONFIG_FILE, GenaiFacts, read_genai_config
from contract.errors import BuildRefused
from contract.onnx.attention import attention_window
from contract.onnx.graph import Node, OnnxModel, Tensor
from contract.onnx.rules import check_graph
from contract.onnx.wire import read_graph_file

ELEMENT_NAMES = {1: "fp32", 2: "uint8", 3: "int8", 7: "int64", 10: "fp16", 16: "bf16", 21: "uint4", 22: "int4"}
ATTENTION = ("GroupQueryAttention", "PagedAttention", "MultiHeadAttention", "Attention")
"""One a layer; the last two know no window."""

MAX_REPORTED = 4
"""Differences named in one refusal; the first ones say enough."""


class QuantisedMatMul(Struct, frozen=True):
    """One MatMulNBits."""

    name: str
    bits: int
    block_size: int
    accuracy_level: int
    weights: int


class GraphFacts(Struct, frozen=True):
    """What a graph is. ``windows`` are the attention windows by layer, -1 for none; types as in the manifest.

    ``slots`` are the places for adapters, by name.
    """

    opsets: dict[str, int]
    operators: dict[str, int]
    quantised: tuple[QuantisedMatMul, ...]
    plain_matmuls: tuple[str, ...]
    embedding: str
    lm_head: str
    kv_type: str
    windows: tuple[int, ...]
    parameters: int
    tensor_bytes: int
    slots: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """``int4``, ``int8`` or ``mixed`` by the quantised products, else the type of the plain weights."""
        bits = {product.bits for product in self.quantised}
        if not bits:
            return self.kv_type
        return {4: "int4", 8: "int8"}.get(bits.pop(), "mixed") if len(bits) == 1 else "mixed"


def read_back(model_dir: Path) -> tuple[GenaiFacts, GraphFacts]:
    """Read configuration and graph of a finished folder, checking both as a device would.

    Raises:
        BundleRefused: they could not be installed anywhere.
        BuildRefused: the configuration is missing.
    """
    config_path = model_dir / CONFIG_FILE
    if not config_path.is_file():
        raise BuildRefused(f"{model_dir} has no {CONFIG_FILE}; name a finished onnxruntime-genai folder")
    files = {
        path.relative_to(model_dir).as_posix(): path.stat().st_size for path in model_dir.rglob("*") if path.is_file()
    }
    config = read_genai_config(config_path.read_bytes(), files)
    facts: GraphFacts | None = None
    table: str | None = None
    for name in config.graphs:
        model = read_graph_file(model_dir / name)
        check_graph(model, name, files)
        if name == config.filename:
            facts = describe_graph(model)
        elif any(entry.name == "input_ids" for entry in model.graph.inputs):
            table = _find_table(model)
    assert facts is not None  # the decoder's graph is one of config.graphs
    if facts.embedding == "none" and table is not None:
        facts = msgspec.structs.replace(facts, embedding=table)
    return config, facts


def _find_table(model: OnnxModel) -> str | None:
    """The type of the embedding in a graph that does nothing else than to look up embeddings."""
    tensors = {tensor.name: tensor for tensor in model.walk_tensors()}
    for node in model.walk_nodes():
        if node.op_type == "GatherBlockQuantized":
            return f"int{node.integer('bits', 4)}"
        if node.op_type == "Gather" and node.inputs[0] in tensors:
            return ELEMENT_NAMES.get(tensors[node.inputs[0]].data_type, "other")
    return None


def describe_graph(model: OnnxModel) -> GraphFacts:
    """The facts of one decoder graph."""
    nodes = list(model.walk_nodes())
    tensors = {tensor.name: tensor for tensor in model.walk_tensors()}
    slots = find_slots(model)
    halves = {name for slot in slots.values() for name in (slot.first, slot.second)}
    quantised = tuple(_quantised(node) for node in nodes if node.op_type == "MatMulNBits")
    plain = tuple(
        node.name
        for node in nodes
        if node.op_type in ("MatMul", "Gemm") and any(name in tensors and name not in halves for name in node.inputs)
    )
    past = [value for value in model.graph.inputs if value.name.startswith("past_key_values.")]
    return GraphFacts(
        opsets=dict(model.opsets),
        operators=dict(sorted(Counter(node.op_type for node in nodes).items())),
        quantised=quantised,
        plain_matmuls=plain,
        embedding=_embedding(nodes, tensors),
        lm_head=_lm_head(nodes, tensors),
        kv_type=ELEMENT_NAMES.get(past[0].elem_type, str(past[0].elem_type)) if past else "none",
        windows=tuple(attention_window(node, nodes) for node in nodes if node.op_type in ATTENTION),
        parameters=sum(product.weights for product in quantised)
        + sum(_own_rows(node, tensors) for node in nodes if node.op_type == "GatherBlockQuantized")
        + sum(tensor.elements for tensor in tensors.values() if tensor.data_type in (1, 10, 16) and _is_weight(tensor)),
        tensor_bytes=sum(tensor.needed_bytes or 0 for tensor in tensors.values()),
        slots=tuple(slots),
    )


def _own_rows(node: Node, tensors: dict[str, Tensor]) -> int:
    """Weights of a quantised table that no product shares."""
    table = tensors.get(node.inputs[0])
    return 0 if table is None else table.elements * 8 // node.integer("bits", 4)


def _is_weight(tensor: Tensor) -> bool:
    name = tensor.name
    return not (name.endswith(("_scales", "_zp", "_zero_points")) or "cos_cache" in name or "sin_cache" in name)


def _quantised(node: Node) -> QuantisedMatMul:
    return QuantisedMatMul(
        name=node.name,
        bits=node.integer("bits", 4),
        block_size=node.integer("block_size"),
        accuracy_level=node.integer("accuracy_level"),
        weights=node.integer("K") * node.integer("N"),
    )


def _embedding(nodes: list[Node], tensors: dict[str, Tensor]) -> str:
    for node in nodes:
        if "input_ids" not in node.inputs:
            continue
        if node.op_type == "GatherBlockQuantized":
            return f"int{node.integer('bits', 4)}"
        if node.op_type == "Gather":
            table = tensors.get(node.inputs[0])
            return "tied" if table is None else ELEMENT_NAMES.get(table.data_type, "other")
    return "none"


def _lm_head(nodes: list[Node], tensors: dict[str, Tensor]) -> str:
    for node in reversed(nodes):
        if "lm_head" not in node.name:
            continue
        if node.op_type == "MatMulNBits":
            return f"int{node.integer('bits', 4)}"
        if node.op_type in ("MatMul", "Gemm"):
            found = [tensors[name] for name in node.inputs if name in tensors]
            return ELEMENT_NAMES.get(found[0].data_type, "other") if found else "tied"
    return "none"
