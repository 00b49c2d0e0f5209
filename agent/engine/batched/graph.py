"""What the graph of a decoder needs to be driven directly, or why it cannot be."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from agent.engine.batched.rope import rope_switch
from agent.engine.runtime_errors import Declined
from contract.bundle.footprint import kv_token_bytes
from contract.bundle.genai_config import GenaiFacts
from contract.bundle.picture_families import AXES, PICTURE_FAMILIES
from contract.errors import BundleRefused
from contract.onnx.attention import attention_window
from contract.onnx.graph import FLOAT, INT8, INT64, Node, OnnxModel, Value
from contract.onnx.wire import read_graph_file

ATTENTION = "GroupQueryAttention"
OTHER_STATE = frozenset({"MultiHeadAttention", "Attention", "PagedAttention", "LinearAttention", "CausalConvWithState"})
"""Operators that keep or read a state of another kind."""

KV_TYPES = {FLOAT: "float32", INT8: "int8"}


class Decoder(Struct, frozen=True):
    """How to feed a graph. ``past`` and ``present`` name keys and values in the same order; ``embedded``: what stands
    for the tokens are embeddings, under the name ``input_ids``; ``token_numbers``: under which name it is given the
    tokens' numbers beside them, where it works out of these which tokens see each other. A token has as many positions
    as ``axes``.

    ``window`` is the longest sliding window of its layers (0: all of them look at everything); ``rope_switch`` the
    widest mask that gets the short rope factors (0: there is one set only).
    """

    path: Path
    input_ids: str
    attention_mask: str
    position_ids: str | None
    logits: str
    past: tuple[str, ...]
    present: tuple[str, ...]
    kv_heads: int
    head_size: int
    kv_type: str
    kv_bytes_per_token: int
    vocab_size: int
    context_length: int
    window: int = 0
    rope_switch: int = 0
    embedded: bool = False
    token_numbers: str | None = None
    axes: int = 1


def read_decoder(bundle_dir: Path, facts: GenaiFacts) -> Decoder:
    """Read the decoder's graph.

    Raises:
        Declined: anything in it that this engine has not been taught.
    """
    path = bundle_dir / facts.filename
    try:
        model = read_graph_file(path)
    except BundleRefused as refused:
        raise Declined(f"its graph cannot be read: {refused.message}") from refused
    family = PICTURE_FAMILIES.get(facts.model_type)
    embedded = family is not None and facts.vision is not None and facts.embedding is not None
    parts = {part.filename for part in (facts.vision, facts.embedding) if part is not None and embedded}
    if set(facts.graphs) != {facts.filename, *parts}:
        raise Declined("it is made of several graphs")
    if facts.provider != "cpu":
        raise Declined(f"it is built for {facts.provider}")
    if family is not None and embedded and not family.below_zero and facts.image_token_id is None:
        raise Declined("its configuration does not say which token stands for a picture (model.image_token_id)")
    nodes = list(model.walk_nodes())
    attentions = _check_nodes(nodes, takes_positions=_takes_positions(model, facts), layers=facts.layers)
    past = _names(facts.inputs, ("past_key_names", "past_value_names"), "past_key_values.%d.{}", facts.layers)
    present = _names(facts.outputs, ("present_key_names", "present_value_names"), "present.%d.{}", facts.layers)
    name = "inputs_embeds" if embedded else "input_ids"
    ids = facts.inputs.get(name, name)
    mask = facts.inputs.get("attention_mask", "attention_mask")
    positions = facts.inputs.get("position_ids", "position_ids")
    logits = facts.outputs.get("logits", "logits")
    defaults = {tensor.name for tensor in model.graph.initializers}
    # Places for adapters stay empty here: what has a default needs not be fed.
    inputs = {value.name: value for value in model.graph.inputs if value.name not in defaults}
    outputs = {value.name: value for value in model.graph.outputs}
    numbers = facts.inputs.get("input_ids", "input_ids") if family is not None and family.together else ids
    unknown = sorted(inputs.keys() - {ids, mask, positions, numbers, *past})
    if unknown or not {ids, mask, *past} <= inputs.keys():
        raise Declined(f"its inputs are not those of a plain decoder ({', '.join(unknown) or 'some are missing'})")
    if not {logits, *present} <= outputs.keys():
        raise Declined("its outputs are not those of a plain decoder")
    if (
        inputs[ids].elem_type != (FLOAT if embedded else INT64)
        or {inputs[name].elem_type for name in {mask, numbers} & inputs.keys() - {ids}} != {INT64}
        or outputs[logits].elem_type != FLOAT
    ):
        raise Declined("its inputs or logits are of another type than expected")
    axes = _count_axes(inputs[positions], inputs[mask]) if positions in inputs else 1
    if axes != (1 if family is None or family.grid is None else AXES):
        raise Declined(f"a token has {axes or 'unheard'} positions in it")
    kinds = {inputs[name].elem_type for name in past}
    if len(kinds) != 1 or not kinds <= KV_TYPES.keys():
        raise Declined("its keys and values are neither fp32 nor INT8")
    kind = kinds.pop()
    return Decoder(
        path=path,
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions if positions in inputs else None,
        logits=logits,
        past=past,
        present=present,
        kv_heads=facts.kv_heads,
        head_size=facts.head_size,
        kv_type=KV_TYPES[kind],
        kv_bytes_per_token=kv_token_bytes(facts, kind),
        vocab_size=facts.vocab_size,
        context_length=facts.context_length,
        window=max(0, *(attention_window(node, nodes) for node in attentions)),
        rope_switch=rope_switch(model, path, mask),
        embedded=embedded,
        axes=axes,
        token_numbers=numbers if numbers != ids and numbers in inputs else None,
    )


def derived_graph(path: Path, derived_dir: Path | None) -> Path:
    """The graph to load: the prepacked one where there is one, under the name that :mod:`agent.worker.prepacking` gives
    it. What it computes is what the signed one says; the self-test at load looks at it like at any other.
    """
    prepacked = None if derived_dir is None else derived_dir / "model.onnx"
    return prepacked if prepacked is not None and prepacked.is_file() else path


def _names(table: dict[str, str], keys: tuple[str, str], default: str, layers: int) -> tuple[str, ...]:
    patterns = [table.get(key, default.format(kind)) for key, kind in zip(keys, ("key", "value"), strict=True)]
    return tuple(pattern.replace("%d", str(layer)) for layer in range(layers) for pattern in patterns)


def _check_nodes(nodes: list[Node], *, takes_positions: bool, layers: int) -> list[Node]:
    """Its attentions, once everything in it is known to hold its state in keys and values alone."""
    attentions: list[Node] = []
    for node in nodes:
        if node.op_type == ATTENTION:
            attentions.append(node)
        elif node.op_type in OTHER_STATE:
            raise Declined(f"it uses {node.op_type}")
    if len(attentions) != layers:
        raise Declined(f"{len(attentions)} of its {layers} layers use {ATTENTION}")
    if any(not node.integer("do_rotary") for node in attentions) and not takes_positions:
        raise Declined("its rotary embedding is outside the attention and takes no positions")
    return attentions


def _count_axes(positions: Value, mask: Value) -> int:
    """How many positions a token has; 0 where that cannot be told."""
    *axes, _, _ = positions.dims
    if len(positions.dims) == len(mask.dims):
        return 1
    return axes[0] if len(axes) == 1 and isinstance(axes[0], int) else 0


def _takes_positions(model: OnnxModel, facts: GenaiFacts) -> bool:
    name = facts.inputs.get("position_ids", "position_ids")
    return any(value.name == name for value in model.graph.inputs)
