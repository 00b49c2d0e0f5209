"""Logits of a prompt's last token alone: the graph's copy that the batched engine loads, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.engine.batched.graph import Decoder, read_decoder
from agent.engine.batched.logits_to_keep import START, with_start
from agent.engine.batched.opening import open_model
from agent.engine.batched.pool import Pool
from agent.engine.batched.runner import Runner, open_session
from agent.engine.config import read_config
from agent.engine.load_options import ModelFiles, Resources
from agent.worker.prepacking import prepack
from contract.errors import BundleRefused


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path) -> Decoder:
    return read_decoder(tiny_bundle, read_config(tiny_bundle))


def runner_of(decoder: Decoder, graph: Path, logits: str) -> Runner:
    return Runner(open_session(graph, 1, logits=logits), decoder, Pool(decoder, 2, 96))


def test_only_the_last_tokens_logits_are_computed_and_they_are_the_same(decoder: Decoder) -> None:
    whole, edited = (runner_of(decoder, decoder.path, logits) for logits in ("", decoder.logits))
    tokens = list(range(3, 67))
    wanted = whole.prefill(0, 0, tokens, last=True)
    assert wanted.shape == (64, decoder.vocab_size), "a graph as it was built cannot be told"
    found = edited.prefill(0, 0, tokens, last=True)
    assert found.shape == (1, decoder.vocab_size)
    assert np.abs(found[-1] - wanted[-1]).max() < 0.5  # one row may take another kernel
    assert np.array_equal(edited.prefill(0, 0, tokens), wanted), "all of them where all are asked for"
    assert np.array_equal(edited.decode(0, [5], [64]), whole.decode(0, [5], [64]))
    assert edited.shows_all


def test_the_copy_is_a_valid_graph_and_differs_in_nothing_else(decoder: Decoder) -> None:
    data = decoder.path.read_bytes()
    edited = with_start(data, decoder.logits)
    assert edited is not None
    before, after = onnx.load_model_from_string(data), onnx.load_model_from_string(edited)
    assert [value.name for value in after.graph.input][-1] == START
    [kept] = [node for node in after.graph.node if node.op_type == "Slice" and node.name == "edge/Slice"]
    after.graph.node.remove(kept)
    for node in after.graph.node:
        for place, name in enumerate(node.input):
            if name == kept.output[0]:
                node.input[place] = kept.input[0]
    del after.graph.input[-1]
    del after.graph.initializer[-2:]
    assert after == before
    assert with_start(edited, decoder.logits) is None, "once"


def test_prepacked_weights_have_it_and_older_ones_get_it(
    tiny_bundle: Path, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = list(range(3, 35))
    wanted = runner_of(decoder, decoder.path, decoder.logits).prefill(0, 0, tokens, last=True)
    for name, most in (("new", 2**26), ("older", 0)):
        (tmp_path / name).mkdir()
        with monkeypatch.context() as patched:
            patched.setattr("agent.engine.batched.runner.MAX_EDITED_BYTES", most)
            prepack(decoder.path, tmp_path / name)
        graph = tmp_path / name / "model.onnx"
        assert (START.encode() in graph.read_bytes()) is (name == "new")
        found = runner_of(decoder, graph, decoder.logits).prefill(0, 0, tokens, last=True)
        assert np.array_equal(found, wanted)
    assert open_model(ModelFiles(tiny_bundle, tmp_path / "new"), Resources(1)).facts.engine == "batched"


def graph_of(*nodes: onnx.NodeProto) -> bytes:
    inputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, "tokens", 4])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "tokens", 8])]
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [4, 8], np.zeros(32, np.float32))
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [2.0])
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, [weights, scale])
    return bytes(helper.make_model(graph).SerializeToString())


NORM = helper.make_node("Relu", ["hidden"], ["normed"])
HEAD = helper.make_node("MatMul", ["normed", "weights"], ["product"])


def test_scales_and_caps_behind_the_head_stay_behind_it() -> None:
    data = graph_of(
        NORM,
        HEAD,
        helper.make_node("Div", ["product", "scale"], ["small"]),
        helper.make_node("Tanh", ["small"], ["capped"]),
        helper.make_node("Mul", ["capped", "scale"], ["logits"]),
    )
    edited = with_start(data, "logits")
    assert edited is not None
    nodes = onnx.load_model_from_string(edited).graph.node
    assert [node.op_type for node in nodes] == ["Relu", "Slice", "MatMul", "Div", "Tanh", "Mul"]
    assert list(nodes[1].input)[:2] == ["normed", START]
    assert nodes[2].input[0] == nodes[1].output[0]


@pytest.mark.parametrize(
    "nodes",
    [
        [NORM, HEAD, helper.make_node("Softmax", ["product"], ["logits"])],
        [NORM, HEAD, helper.make_node("Add", ["product", "product"], ["logits"])],
        [helper.make_node("MatMul", ["hidden", "weights"], ["logits"])],
        [helper.make_node("Identity", ["hidden"], ["other"])],
    ],
)
def test_a_graph_whose_head_cannot_be_told_is_left_as_it_is(nodes: list[onnx.NodeProto]) -> None:
    assert with_start(graph_of(*nodes), "logits") is None


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_is_no_graph_is_refused_and_loaded_as_a_file(decoder: Decoder, tmp_path: Path, share: float) -> None:
    whole = decoder.path.read_bytes()
    data = whole[: int(share * len(whole))]
    with pytest.raises(BundleRefused):
        with_start(data, decoder.logits)
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(Exception, match=r"(?i)protobuf"):
        open_session(tmp_path / "model.onnx", 1, logits=decoder.logits)
