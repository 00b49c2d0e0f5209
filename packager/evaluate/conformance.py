"""Holding what was read back against what was asked for: the plan, and the source's own configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contract.bundle.genai_config import GenaiFacts
from contract.errors import BuildRefused
from packager.build.jobs import TurnEnd
from packager.build.plan import BuildPlan, io_type, kv_type
from packager.graph.embedding import BITS, choose_block
from packager.graph.facts import GraphFacts
from packager.graph.slots import slot_name

MAX_REPORTED = 4
"""Differences named in one refusal; the first ones say enough."""

OPSETS = {"": range(13, 24), "ai.onnx": range(13, 24), "ai.onnx.ml": range(1, 6), "com.microsoft": range(1, 2)}
"""Versions of operator sets that onnxruntime 1.31 runs and that the builder may write."""


def compare(plan: BuildPlan, source: dict[str, Any], config: GenaiFacts, graph: GraphFacts) -> list[str]:
    """Where the produced graph differs from the plan and the source's configuration, each as half a sentence.

    ``source`` is config.json with transformers' defaults filled in, as the builder's process reports it.
    """
    return [
        *_compare_weights(plan, graph),
        *_compare_types(plan, source, config, graph),
        *_compare_shape(source, config, graph),
        *_compare_windows(source, config, graph),
        *_compare_slots(plan, graph),
    ]


def _compare_types(plan: BuildPlan, source: dict[str, Any], config: GenaiFacts, graph: GraphFacts) -> list[str]:
    found: list[str] = []
    if graph.kv_type != kv_type(plan):
        found.append(f"the key-value cache is {graph.kv_type} instead of {kv_type(plan)}")
    for what, built, wanted in (
        ("embedding", graph.embedding, expected_embedding(plan, source)),
        ("lm_head", graph.lm_head, expected_lm_head(plan, source)),
    ):
        if built not in wanted:
            found.append(f"the {what} is {built} instead of {' or '.join(wanted)}")
    for domain, version in graph.opsets.items():
        if version not in OPSETS.get(domain, ()):
            found.append(f"the operator set {domain or 'ai.onnx'!r} has version {version}, which the runtime lacks")
    if config.provider != plan.ep:
        found.append(f"the configuration is for {config.provider} instead of {plan.ep}")
    return found


def expected_embedding(plan: BuildPlan, source: dict[str, Any]) -> tuple[str, ...]:
    """Types that the embedding may have: the builder quantises it only to share it with the lm_head, in 4 bits; all
    others are quantised as the plan says (:mod:`packager.graph.embedding`).

    ``tied`` is a plain one that is the lm_head's weight; the manifest's ``quality.embedding`` says what it is.
    """
    plain = io_type(plan)
    if plan.sees:
        bits = BITS.get(plan.own_embedding)
        known = bits is not None and choose_block(bits, int(source.get("hidden_size") or 0)) is not None
        return (plan.own_embedding if known else plain,)
    if not plan.quantised:
        return (plain, "tied")
    if source.get("quantization_config"):
        return (plain, "int4", "int8")
    if plan.precision == "int4" and source.get("tie_word_embeddings"):
        return ("int4", "int8") if plan.quantizer.endswith("mixed") else ("int4",)
    bits = BITS.get(plan.own_embedding)
    if bits is None or choose_block(bits, int(source.get("hidden_size") or 0)) is None:
        return (plain,)
    return (plan.own_embedding,)


def expected_lm_head(plan: BuildPlan, source: dict[str, Any]) -> tuple[str, ...]:
    """Types that the lm_head may have; ``tied`` when it multiplies with the plain embedding."""
    if not plan.quantised:
        return (io_type(plan), "tied")
    if source.get("quantization_config"):
        return ("int4", "int8")
    return ("int4", "int8") if plan.quantizer.endswith("mixed") else (plan.precision,)


def _compare_weights(plan: BuildPlan, graph: GraphFacts) -> list[str]:
    found: list[str] = []
    if not plan.quantised:
        if graph.quantised:
            found.append(f"{len(graph.quantised)} products are quantised although {plan.precision} was asked for")
        return found
    if not graph.quantised:
        return [f"no product is quantised although {plan.precision} was asked for"]
    bits = {"int4": {4}, "int8": {8}}[plan.precision] | ({8} if plan.quantizer.endswith("mixed") else set())
    for product in graph.quantised:
        if product.bits not in bits:
            found.append(f"{product.name} has {product.bits} bits instead of {plan.precision}")
        if product.block_size != plan.block_size:
            found.append(f"{product.name} has blocks of {product.block_size} instead of {plan.block_size}")
        if product.accuracy_level != plan.accuracy_level:
            found.append(f"{product.name} has accuracy level {product.accuracy_level} instead of {plan.accuracy_level}")
    if graph.plain_matmuls:
        found.append(f"{graph.plain_matmuls[0]} and {len(graph.plain_matmuls) - 1} other products were not quantised")
    return found


def _compare_shape(source: dict[str, Any], config: GenaiFacts, graph: GraphFacts) -> list[str]:
    found: list[str] = []
    for key, built in (
        ("vocab_size", config.vocab_size),
        ("num_hidden_layers", config.layers),
        ("num_attention_heads", config.attention_heads),
        ("num_key_value_heads", config.kv_heads),
        ("hidden_size", config.hidden_size),
    ):
        if isinstance(source.get(key), int) and source[key] != built:
            found.append(f"{key} is {built} instead of {source[key]}")
    return found


def _compare_windows(source: dict[str, Any], config: GenaiFacts, graph: GraphFacts) -> list[str]:
    found: list[str] = []
    attending = [kind for kind in source.get("layer_types") or [] if "attention" in kind]
    wanted_layers = len(attending) or config.layers
    if len(graph.windows) != wanted_layers:
        return [f"the graph has {len(graph.windows)} attention layers instead of {wanted_layers}"]
    for layer, (built, wanted) in enumerate(
        zip(graph.windows, expected_windows(source, len(graph.windows)), strict=True)
    ):
        if (built if built < config.context_length else -1) != wanted:
            found.append(f"layer {layer} attends over {_window(built)} instead of {_window(wanted)}")
    return found


def _compare_slots(plan: BuildPlan, graph: GraphFacts) -> list[str]:
    products = [*(product.name for product in graph.quantised), *graph.plain_matmuls]
    wanted = {stem for name in products if (stem := slot_name(name)) is not None} if plan.adapter_slots else set()
    if plan.adapter_slots and not wanted:
        return ["no product of a layer can take an adapter"]
    found = [f"{name} has no place for adapters" for name in sorted(wanted - set(graph.slots))]
    return found + [f"{name} has a place for adapters" for name in sorted(set(graph.slots) - wanted)]


def compare_ends(ends: Sequence[TurnEnd], config: GenaiFacts) -> list[str]:
    """Tokens that end a turn of the source and do not end an answer of the build, as half sentences."""
    return [
        f"{end.text} (token {end.token}), which ends a turn by {' and '.join(end.named_by)}, does not end an answer"
        for end in ends
        if end.token not in config.eos_token_ids
    ]


def _window(size: int) -> str:
    return "everything" if size == -1 else f"a window of {size}"


def expected_windows(source: dict[str, Any], layers: int) -> list[int]:
    """The attention window of each layer that the source's configuration asks for, -1 for none that ever shows."""
    window = source.get("sliding_window")
    if not isinstance(window, int) or window <= 0 or source.get("use_sliding_window") is False:
        return [-1] * layers
    if window >= source.get("max_position_embeddings", window + 1):
        return [-1] * layers
    types = source.get("layer_types")
    if isinstance(types, list) and len(types) == layers:
        return [window if kind == "sliding_attention" else -1 for kind in types]
    return [window] * layers


def check_conformance(
    plan: BuildPlan, source: dict[str, Any], config: GenaiFacts, graph: GraphFacts, more: Sequence[str] = ()
) -> None:
    """Refuse a graph that is not what was asked for; ``more`` are differences found elsewhere.

    Raises:
        BuildRefused: naming the first differences.
    """
    differences = [*compare(plan, source, config, graph), *more]
    if differences:
        rest = f" and {len(differences) - MAX_REPORTED} more" if len(differences) > MAX_REPORTED else ""
        raise BuildRefused(
            f"the produced graph is not what was asked for: {'; '.join(differences[:MAX_REPORTED])}{rest}"
        )
