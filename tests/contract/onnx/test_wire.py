"""The bounded graph reader: it agrees with onnx on real graphs, and refuses everything else with its reason."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import BundleRefused
from contract.onnx.graph import Graph, Tensor
from contract.onnx.rules import check_graph
from contract.onnx.wire import MAX_DEPTH, read_graph, read_graph_file
from contract.reasons import Reason

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402  (only where onnx is installed: the device side has none)

SIZES = {"model.onnx": 10_000, "model.onnx.data": 4096}


def external(name: str = "w", dims: tuple[int, ...] = (16,), **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "model.onnx.data", "offset": "0", "length": "64", **entries}.items():
        if value:
            tensor.external_data.add(key=key, value=value)
    return tensor


def model_bytes(nodes: list | None = None, tensors: list | None = None, **changes: object) -> bytes:
    nodes = nodes if nodes is not None else [helper.make_node("Add", ["x", "w"], ["y"], name="add")]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value], [out], tensors if tensors is not None else [external()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    for key, changed in changes.items():
        setattr(model, key, changed)
    return bytes(model.SerializeToString())


def reason_of(data: bytes, files: dict[str, int] | None = None) -> tuple[Reason, str]:
    with pytest.raises(BundleRefused) as caught:
        check_graph(read_graph(data), "model.onnx", SIZES if files is None else files)
    return caught.value.reason, caught.value.message


def test_real_graph_reads_as_onnx_reads_it(tiny_bundle: Path) -> None:
    theirs = onnx.load(tiny_bundle / "model.onnx", load_external_data=False)
    ours = read_graph_file(tiny_bundle / "model.onnx")
    assert ours.opsets == {entry.domain: entry.version for entry in theirs.opset_import}
    assert [node.op_type for node in ours.graph.nodes] == [node.op_type for node in theirs.graph.node]
    assert [list(node.inputs) for node in ours.graph.nodes] == [list(node.input) for node in theirs.graph.node]
    for node, other in zip(ours.graph.nodes, theirs.graph.node, strict=True):
        expected = {entry.name: helper.get_attribute_value(entry) for entry in other.attribute}
        assert node.attributes.keys() == expected.keys()
        for name, value in node.attributes.items():
            if isinstance(value, int | float | bytes):
                assert value == expected[name]
    assert [tensor.name for tensor in ours.graph.initializers] == [entry.name for entry in theirs.graph.initializer]
    for tensor, initializer in zip(ours.graph.initializers, theirs.graph.initializer, strict=True):
        assert list(tensor.dims) == list(initializer.dims)
        where = {entry.key: entry.value for entry in initializer.external_data}
        if tensor.external is not None:
            assert (tensor.external.location, str(tensor.external.offset)) == (where["location"], where["offset"])
    files = {path.name: path.stat().st_size for path in tiny_bundle.iterdir()}
    check_graph(ours, "model.onnx", files)


def test_attributes_of_every_type_come_back() -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "inner", [], [])
    node = helper.make_node(
        "Thing", ["x"], ["y"], i=-5, f=0.5, s=b"text", ints=[1, -2, 2**40], floats=[1.5, -2.5], strings=[b"a", b""],
        t=helper.make_tensor("v", TensorProto.INT64, [2], [1, 2]), g=inner,
    )  # fmt: skip
    [read] = read_graph(model_bytes([node])).graph.nodes
    attributes = dict(read.attributes)
    assert isinstance(attributes["t"], Tensor)
    assert isinstance(attributes["g"], Graph)
    assert attributes["g"].nodes[0].op_type == "Relu"
    del attributes["t"], attributes["g"]
    assert attributes == {
        "i": -5, "f": 0.5, "s": b"text", "ints": (1, -2, 2**40), "floats": (1.5, -2.5), "strings": (b"a", b"")
    }  # fmt: skip


def test_inputs_keep_numbers_and_names_of_dimensions() -> None:
    model = read_graph(model_bytes())
    assert model.graph.inputs[0].dims == ("batch", 16)
    assert model.graph.inputs[0].elem_type == TensorProto.FLOAT


def test_graphs_nested_too_deep_are_refused() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "leaf", [], [])
    for _ in range(MAX_DEPTH):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "outer", [], [])
    reason, message = reason_of(model_bytes(list(graph.node)))
    assert reason is Reason.GRAPH_INVALID
    assert "nested" in message


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"location": "../outside"}, "normalised"),
        ({"location": "/etc/passwd"}, "absolute"),
        ({"location": "*/_ORT_MEM_ADDR_/*"}, "not allowed"),
        ({"location": "other.data"}, "not in the bundle"),
        ({"location": "model.onnx"}, "own file"),
        ({"location": ""}, "1 to"),
        ({"offset": "4080"}, "beyond"),
        ({"offset": "-1"}, "lies at"),
        ({"offset": "99999999999999999999"}, "lies at"),
        ({"length": "63"}, "claims"),
        ({"length": "4096"}, "claims"),
        ({"prepacked_0": "x"}, "key"),
    ],
)
def test_external_data_stays_inside_the_bundle(entries: dict[str, str], word: str) -> None:
    reason, message = reason_of(model_bytes(tensors=[external(**entries)]))
    assert reason in (Reason.GRAPH_INVALID, Reason.UNSAFE_PATH)
    assert word in message


def test_external_data_hidden_in_an_attribute_or_subgraph_is_found() -> None:
    node = helper.make_node("Constant", [], ["y"], value=external(location="../key"))
    assert reason_of(model_bytes([node]))[0] is Reason.UNSAFE_PATH
    inner = helper.make_graph([node], "inner", [], [])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner)
    assert reason_of(model_bytes([branch]))[0] is Reason.UNSAFE_PATH


@pytest.mark.parametrize(
    ("domain", "operator"), [("my.company", "Add"), ("ai.onnx.contrib", "PyOp"), ("com.microsoft", "EPContext")]
)
def test_operators_that_are_not_built_in_are_refused(domain: str, operator: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    assert reason_of(model_bytes([node]))[0] is Reason.GRAPH_INVALID


def test_a_function_is_searched_like_the_graph() -> None:
    evil = helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib")
    function = helper.make_function("local", "f", ["x"], ["y"], [evil], [helper.make_opsetid("", 22)])
    graph = helper.make_graph([helper.make_node("f", ["x"], ["y"], domain="local")], "g", [], [])
    model = helper.make_model(graph, functions=[function], opset_imports=[helper.make_opsetid("", 22)])
    assert "contrib" in reason_of(model.SerializeToString())[1]


def test_a_second_graph_is_refused_and_not_merged() -> None:
    data = model_bytes()
    assert "twice" in reason_of(data + data)[1]


def test_unknown_fields_are_refused() -> None:
    assert "unknown field" in reason_of(model_bytes() + b"\xf8\x07\x01")[1]


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_a_refusal(data: bytes) -> None:
    try:
        check_graph(read_graph(data), "model.onnx", SIZES)
    except BundleRefused as refused:
        assert refused.reason in (Reason.GRAPH_INVALID, Reason.UNSAFE_PATH)


@pytest.fixture(scope="module")
def real(tiny_bundle: Path) -> bytes:
    return (tiny_bundle / "model.onnx").read_bytes()


def test_every_truncation_is_refused_or_lacks_something(real: bytes) -> None:
    files = {"model.onnx": len(real), "model.onnx.data": 10**9}
    whole = read_graph(real)
    for size in range(0, len(real), max(1, len(real) // 400)):
        try:
            cut = read_graph(real[:size])
            check_graph(cut, "model.onnx", files)
            assert cut != whole
        except BundleRefused:
            pass


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4))
def test_mutations_raise_nothing_but_a_refusal(real: bytes, edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(real)
    for at, piece in edits:
        start = at % len(data)
        data[start : start + len(piece)] = piece
    with contextlib.suppress(BundleRefused):
        check_graph(read_graph(bytes(data)), "model.onnx", {"model.onnx": len(data), "model.onnx.data": 10**9})
