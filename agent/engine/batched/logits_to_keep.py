"""Lets whoever runs a decoder say for which of its tokens logits are computed. Pure.

Of a prompt only the last token's logits are wanted, and the lm_head is a fifth to a quarter of a small model's work. So
the graph gets one more input, :data:`START`, and a Slice in front of the lm_head: from that token on (counted from the
end below zero) rows are multiplied. This is done here, to a copy in memory that only the batched engine loads: the
signed file stays as it is, other engines run it as ever, and bundles that were built before gain as well.
"""

from __future__ import annotations

from typing import NamedTuple

from contract.onnx.graph import INT64
from contract.onnx.protobuf import BYTES, VARINT, Field, read_fields

START = "edge.logits_start"
"""The input: int64, one number. No graph of a builder has a name of this kind."""

PRODUCTS = (b"MatMul", b"MatMulNBits")
ROWWISE = (b"Add", b"Mul", b"Div", b"Tanh", b"Cast")
"""What may stand behind the lm_head: scales, biases and caps of each row by itself."""

GRAPH, NODE, INITIALIZER, INPUT = 7, 1, 5, 11
"""Fields of ModelProto and GraphProto."""

NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_TYPE = 1, 2, 3, 4
AXIS, END, KEPT = "edge.logits_axis", "edge.logits_end", b"edge.logits_kept"
LAST = 2**63 - 1


class _Node(NamedTuple):
    """A node as far as it matters here, and where its message lies."""

    inputs: list[bytes]
    outputs: list[bytes]
    kind: bytes
    field: Field


def with_start(data: bytes, logits: str) -> bytes | None:
    """The ModelProto ``data`` with that input; None where the graph's lm_head cannot be told, or has it already.

    Raises:
        BundleRefused: it is no graph that can be read.
    """
    if START.encode() in data:
        return None
    view = memoryview(data)
    graph = next((field for field in read_fields(view, 0, len(view)) if field.number == GRAPH), None)
    if graph is None:
        return None
    head = _find_head(view, graph, logits.encode())
    if head is None:
        return None
    node, rest = head.field, [_bytes(INITIALIZER, _number(AXIS, 1)), _bytes(INITIALIZER, _number(END, LAST))]
    before = view[graph.start : node.start - len(_length(NODE, node))]
    kept = [_bytes(NODE, _slice(head.inputs[0])), _bytes(NODE, _reading_slice(view, node))]
    edited = b"".join([before, *kept, view[node.end : graph.end], *rest, _bytes(INPUT, _input(START))])
    return b"".join([view[: graph.start - len(_length(GRAPH, graph))], _bytes(GRAPH, edited), view[graph.end :]])


def _find_head(view: memoryview, graph: Field, logits: bytes) -> _Node | None:
    """The product whose rows become ``logits``, one by one."""
    makers: dict[bytes, _Node] = {}
    for field in read_fields(view, graph.start, graph.end):
        if field.number == NODE:
            node = _read_node(view, field)
            makers |= dict.fromkeys(node.outputs, node)
    computed = {name for name, node in makers.items() if node.kind != b"Constant"}
    found = makers.get(logits)
    while found is not None and found.kind not in PRODUCTS:
        sources = [name for name in found.inputs if name in computed]
        found = makers.get(sources[0]) if found.kind in ROWWISE and len(sources) == 1 else None
    return found if found is not None and found.inputs[0] in computed else None


def _read_node(view: memoryview, field: Field) -> _Node:
    found = _Node([], [], b"", field)
    kind = b""
    for each in read_fields(view, field.start, field.end):
        if each.number == NODE_INPUT:
            found.inputs.append(bytes(view[each.start : each.end]))
        elif each.number == NODE_OUTPUT:
            found.outputs.append(bytes(view[each.start : each.end]))
        elif each.number == NODE_TYPE:
            kind = bytes(view[each.start : each.end])
    return found._replace(kind=kind)


def _reading_slice(view: memoryview, node: Field) -> bytes:
    """The node, with what is kept for its first input."""
    first = next(each for each in read_fields(view, node.start, node.end) if each.number == NODE_INPUT)
    before = view[node.start : first.start - len(_length(NODE_INPUT, first))]
    return b"".join([before, _bytes(NODE_INPUT, KEPT), view[first.end : node.end]])


def _slice(source: bytes) -> bytes:
    inputs = b"".join(_text(NODE_INPUT, name) for name in (START, END, AXIS))
    return (
        _bytes(NODE_INPUT, source)
        + inputs
        + _bytes(NODE_OUTPUT, KEPT)
        + _text(NODE_NAME, "edge/Slice")
        + _text(NODE_TYPE, "Slice")
    )


def _number(name: str, value: int) -> bytes:
    """A TensorProto of one int64: dims 1, data_type 2, name 8, raw_data 9."""
    return _numeric(1, 1) + _numeric(2, INT64) + _text(8, name) + _bytes(9, value.to_bytes(8, "little"))


def _input(name: str) -> bytes:
    """A ValueInfoProto: a tensor of one int64."""
    shape = _bytes(1, _numeric(1, 1))
    return _text(1, name) + _bytes(2, _bytes(1, _numeric(1, INT64) + _bytes(2, shape)))


def _length(number: int, field: Field) -> bytes:
    """What stands in front of a field's content."""
    return _varint(number << 3 | BYTES) + _varint(field.end - field.start)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _numeric(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value)


def _bytes(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _text(number: int, content: str) -> bytes:
    return _bytes(number, content.encode())
