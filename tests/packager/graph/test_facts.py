"""The proof: a graph that is not what was asked for never becomes a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contract.errors import BuildRefused
from packager.build.plan import BuildPlan
from packager.evaluate.conformance import check_conformance, compare, expected_windows
from packager.graph.facts import GraphFacts, read_back

onnx = pytest.importorskip("onnx")
PLAN = BuildPlan("source", "tiny", "1.0.0")


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((tiny_checkpoint / "config.json").read_text()))


def edited(bundle: Path, edit: Callable[[Any], None]) -> GraphFacts:
    """The facts of the bundle's graph after ``edit`` changed each node of a copy."""
    from contract.onnx.wire import read_graph
    from packager.graph.facts import describe_graph

    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        edit(node)
    return describe_graph(read_graph(model.SerializeToString()))


def set_integer(operator: str, name: str, value: int) -> Callable[[Any], None]:
    def edit(node: Any) -> None:
        if node.op_type == operator:
            for attribute in node.attribute:
                if attribute.name == name:
                    attribute.i = value

    return edit


def test_the_real_graph_is_what_was_asked_for(tiny_bundle: Path, source: dict[str, Any]) -> None:
    config, graph = read_back(tiny_bundle)
    assert compare(PLAN, source, config, graph) == []
    assert (graph.embedding, graph.lm_head, graph.kv_type) == ("int4", "int4", "fp32")
    assert graph.windows == (-1, -1)
    assert graph.precision == "int4"
    assert len(graph.quantised) == 2 * 5 + 1


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (set_integer("MatMulNBits", "bits", 8), "8 bits"),
        (set_integer("MatMulNBits", "block_size", 64), "blocks of 64"),
        (set_integer("MatMulNBits", "accuracy_level", 0), "accuracy level 0"),
        (set_integer("GroupQueryAttention", "local_window_size", 64), "window of 64"),
    ],
)
def test_a_graph_that_ignored_an_option_is_refused(
    tiny_bundle: Path, source: dict[str, Any], edit: Callable[[Any], None], word: str
) -> None:
    config, _ = read_back(tiny_bundle)
    with pytest.raises(BuildRefused, match=word):
        check_conformance(PLAN, source, config, edited(tiny_bundle, edit))


def test_a_dropped_sliding_window_is_refused(tiny_bundle: Path, source: dict[str, Any]) -> None:
    config, graph = read_back(tiny_bundle)
    with pytest.raises(BuildRefused, match="layer 0 attends over everything instead of a window of 32"):
        check_conformance(PLAN, {**source, "sliding_window": 32}, config, graph)


def test_another_precision_than_the_one_asked_for_is_refused(tiny_bundle: Path, source: dict[str, Any]) -> None:
    config, graph = read_back(tiny_bundle)
    for precision in ("int8", "fp32"):
        with pytest.raises(BuildRefused, match=precision):
            check_conformance(msgspec.structs.replace(PLAN, precision=precision), source, config, graph)


def test_types_and_operator_sets_are_compared_too(tiny_bundle: Path, source: dict[str, Any]) -> None:
    config, graph = read_back(tiny_bundle)
    for changes, words in (
        ({"kv_type": "fp16"}, "the key-value cache is fp16 instead of fp32"),
        ({"embedding": "fp32"}, "the embedding is fp32 instead of int4"),
        ({"lm_head": "fp32"}, "the lm_head is fp32 instead of int4"),
        ({"opsets": {"": 99}}, "version 99, which the runtime lacks"),
        ({"windows": (-1,)}, "1 attention layers instead of 2"),
        ({"plain_matmuls": ("/model/layers.0/mlp",)}, "not quantised"),
        ({"quantised": ()}, "no product is quantised"),
    ):
        assert words in " ".join(compare(PLAN, source, config, msgspec.structs.replace(graph, **changes)))
    quantised_cache = msgspec.structs.replace(PLAN, kv="int8")
    assert compare(quantised_cache, source, config, graph) == ["the key-value cache is fp32 instead of int8"]
    assert compare(quantised_cache, source, config, msgspec.structs.replace(graph, kv_type="int8")) == []
    assert "for cpu instead of cuda" in " ".join(
        compare(msgspec.structs.replace(PLAN, ep="cuda"), source, config, graph)
    )


@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"])
def test_another_shape_than_the_sources_is_refused(tiny_bundle: Path, source: dict[str, Any], key: str) -> None:
    config, graph = read_back(tiny_bundle)
    with pytest.raises(BuildRefused, match=key):
        check_conformance(PLAN, {**source, key: 7}, config, graph)


def test_windows_by_layer() -> None:
    assert expected_windows({}, 2) == [-1, -1]
    assert expected_windows({"sliding_window": None}, 2) == [-1, -1]
    assert expected_windows({"sliding_window": 8}, 2) == [8, 8]
    assert expected_windows({"sliding_window": 8, "use_sliding_window": False}, 2) == [-1, -1]
    assert expected_windows({"sliding_window": 8, "max_position_embeddings": 8}, 2) == [-1, -1]
    types = ["sliding_attention", "full_attention"]
    assert expected_windows({"sliding_window": 8, "layer_types": types}, 2) == [8, -1]
