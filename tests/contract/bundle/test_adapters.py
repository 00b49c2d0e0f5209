"""Places for adapters and the files that go there: exactly what the packager makes, and nothing looser."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bundle.adapter_file import check_adapter, read_adapter, read_adapter_file
from contract.bundle.adapter_slots import Slot, find_slots
from contract.errors import BundleRefused
from contract.onnx.rules import check_graph
from contract.onnx.wire import read_graph
from contract.reasons import Reason

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402  (only where onnx is installed: the device side has none)

FLOAT = TensorProto.FLOAT
STEM = "model.layers.0.attn.o_proj"
A, B = f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight"


def slotted(change: Callable[[Any], None] = lambda graph: None) -> bytes:
    """A product of 4 by 6 with a place for an adapter."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["base"], name="product"),
            helper.make_node("MatMul", ["x", A], ["narrow"], name="first"),
            helper.make_node("MatMul", ["narrow", B], ["wide"], name="second"),
            helper.make_node("Add", ["base", "wide"], ["y"], name="add"),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", FLOAT, ["n", 4]),
            helper.make_tensor_value_info(A, FLOAT, [4, "rank"]),
            helper.make_tensor_value_info(B, FLOAT, ["rank", 6]),
        ],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [
            helper.make_tensor("w", FLOAT, (4, 6), bytes(96), raw=True),
            helper.make_tensor(A, FLOAT, (4, 0), b"", raw=True),
            helper.make_tensor(B, FLOAT, (0, 6), b"", raw=True),
        ],
    )
    change(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    return bytes(model.SerializeToString())


def test_a_place_is_found_by_name_with_its_widths() -> None:
    assert find_slots(read_graph(slotted())) == {STEM: Slot(STEM, 4, 6)}
    check_graph(read_graph(slotted()), "model.onnx", {})


def rename(old: str, new: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        for each in [*graph.input, *graph.initializer]:
            each.name = new if each.name == old else each.name
        for node in graph.node:
            node.input[:] = [new if name == old else name for name in node.input]

    return change


def default_of_the_weight(graph: Any) -> None:
    graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4, 6]))


def default_that_is_not_empty(graph: Any) -> None:
    graph.initializer[1].CopyFrom(helper.make_tensor(A, FLOAT, (4, 2), bytes(32), raw=True))


def half_precision(graph: Any) -> None:
    graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT16


def fixed_rank(graph: Any) -> None:
    for value in graph.input[1:]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 0


def other_width(graph: Any) -> None:
    graph.input[2].type.tensor_type.shape.dim[1].dim_value = 8
    graph.initializer[2].CopyFrom(helper.make_tensor(B, FLOAT, (0, 8), b"", raw=True))


def second_reader(graph: Any) -> None:
    graph.node.append(helper.make_node("Relu", ["narrow"], ["z"], name="spy"))


def shown_outside(graph: Any) -> None:
    graph.output.append(helper.make_tensor_value_info("wide", FLOAT, None))


def product_shown_outside(graph: Any) -> None:
    graph.output.append(helper.make_tensor_value_info("base", FLOAT, None))


def other_input(graph: Any) -> None:
    graph.input.append(helper.make_tensor_value_info("u", FLOAT, ["n", 4]))
    graph.node[1].input[0] = "u"


def no_sum(graph: Any) -> None:
    graph.node[3].op_type = "Mul"


def nothing_beside(graph: Any) -> None:
    graph.node[0].op_type = "Gemm"


def half_of_it(graph: Any) -> None:
    del graph.input[2]


@pytest.mark.parametrize(
    "change",
    [
        rename(A, "model.layers.0.attn.o_proj.weight"), rename(A, "lm_head.lora_A.weight"), default_of_the_weight,
        default_that_is_not_empty, half_precision, fixed_rank, other_width, second_reader, shown_outside,
        product_shown_outside, other_input, no_sum, nothing_beside, half_of_it,
    ],
)  # fmt: skip
def test_anything_else_with_a_default_is_refused(change: Callable[[Any], None]) -> None:
    with pytest.raises(BundleRefused) as caught:
        check_graph(read_graph(slotted(change)), "model.onnx", {})
    assert caught.value.reason == Reason.GRAPH_INVALID


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What onnxruntime itself writes: ranks 2 for a place of 4 by 6."""
    import numpy as np
    import onnxruntime

    path = tmp_path_factory.mktemp("adapter") / "a.onnx_adapter"
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    values = {A: np.arange(8, dtype=np.float32).reshape(4, 2), B: np.ones((2, 6), np.float32)}
    made.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    made.export_adapter(str(path))
    return path


SLOTS = {STEM: Slot(STEM, 4, 6)}


def test_a_file_of_the_runtime_is_read_to_the_byte(written: Path) -> None:
    found = read_adapter_file(written)
    assert {name: tensor.dims for name, tensor in found.items()} == {A: (4, 2), B: (2, 6)}
    data = written.read_bytes()
    first = found[A]
    assert struct.unpack("<8f", data[first.start : first.start + first.size]) == tuple(range(8))
    check_adapter(found, SLOTS)


def reason_of(data: bytes, slots: dict[str, Slot] = SLOTS) -> Reason:
    with pytest.raises(BundleRefused) as caught:
        check_adapter(read_adapter(data), slots)
    return caught.value.reason


@pytest.mark.parametrize("slots", [{}, {STEM: Slot(STEM, 4, 8)}, {"x": Slot("x", 4, 6)}])
def test_a_file_for_another_base_is_refused(written: Path, slots: dict[str, Slot]) -> None:
    assert reason_of(written.read_bytes(), slots) == Reason.ADAPTER_INVALID


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"TORT", b"TFL3"),
        (B.encode(), A.encode()),
        (B.encode(), B.replace("o_proj", "q_proj").encode()),
        (A.encode(), b"\xff" * len(A)),
        (struct.pack("<qq", 4, 2), struct.pack("<qq", 2, 4)),
        (struct.pack("<qq", 4, 2), struct.pack("<qq", 4, 3)),
        (struct.pack("<qq", 4, 2), struct.pack("<qq", -4, -2)),
        (struct.pack("<qq", 4, 2), struct.pack("<qq", 2**62, 2**62)),
    ],
)
def test_a_file_that_says_something_else_is_refused(written: Path, old: bytes, new: bytes) -> None:
    data = written.read_bytes()
    assert old in data
    assert reason_of(data.replace(old, new, 1)) == Reason.ADAPTER_INVALID


def test_an_empty_or_cut_file_is_refused(written: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(BundleRefused, match="empty"):
        read_adapter_file(tmp_path / "empty")
    data = written.read_bytes()
    for length in range(0, len(data) - 1, 7):
        with pytest.raises(BundleRefused):
            check_adapter(read_adapter(data[:length]), SLOTS)


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_stays_inside(written: Path, at: int, value: int) -> None:
    data = bytearray(written.read_bytes())
    data[at % len(data)] = value
    try:
        found = read_adapter(bytes(data))
        check_adapter(found, SLOTS)
    except BundleRefused as refused:
        assert refused.reason == Reason.ADAPTER_INVALID
    else:
        assert all(0 <= tensor.start <= len(data) - tensor.size for tensor in found.values())
