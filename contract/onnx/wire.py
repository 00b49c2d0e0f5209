"""A small bounded reader of ONNX graphs, for both sides: the device has no ``onnx``, and refuses what it cannot read.

It reads what a graph *claims* (operators, attributes, tensors and where their bytes lie), never the weights. A field
that this reader does not know, or one that is given twice where one is allowed, refuses the graph: the runtime's own
parser would skip the one and merge the other, and two readers must not disagree about a signed file.
Field numbers: onnx.proto of ONNX 1.23.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from contract.errors import BundleRefused
from contract.onnx.graph import Attribute, ExternalData, Function, Graph, Node, OnnxModel, Tensor, Value
from contract.onnx.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Field,
    read_bytes,
    read_fields,
    read_floats,
    read_integers,
    read_text,
    refuse,
    signed,
)
from contract.reasons import Reason

MAX_GRAPH_BYTES = 2**31
"""What protobuf itself can hold; larger models keep their weights outside."""

MAX_NODES = 200_000
"""Nodes, initializers and values each: a 100-layer mixture of experts has some 20,000."""

MAX_DEPTH = 4
"""Graphs inside graphs (If, Loop): the deepest in use is 2."""

MAX_RANK = 16
"""Dimensions of a tensor; the runtime's operators stop at 8."""

MAX_LIST = 4096
"""Numbers or strings in one attribute."""


def read_graph_file(path: Path) -> OnnxModel:
    """Read the graph at ``path`` without loading its weights.

    Raises:
        BundleRefused: GRAPH_INVALID, or FILE_MISSING when it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            if not 0 < os.fstat(file.fileno()).st_size <= MAX_GRAPH_BYTES:
                raise refuse(f"{path.name} is empty or larger than {MAX_GRAPH_BYTES} bytes")
            # Closed with its last view: the traceback of a refusal still holds some.
            return read_graph(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise BundleRefused(Reason.FILE_MISSING, f"{path.name} cannot be read: {error.strerror}") from error


def read_graph(data: bytes | memoryview) -> OnnxModel:
    """Read a ModelProto.

    Raises:
        BundleRefused: GRAPH_INVALID.
    """
    view = memoryview(data).toreadonly().cast("B")
    return _Reader(view).model(0, len(view))


_Shape = tuple[dict[int, int], frozenset[int]]
"""Wire type by field number, and the fields that may come once."""


class _Message:
    """The fields of one message, each checked against what is allowed there."""

    def __init__(self, view: memoryview, span: tuple[int, int], what: str, shape: _Shape) -> None:
        wires, once = shape
        self.view = view
        self.fields: dict[int, list[Field]] = {}
        for field in read_fields(view, *span):
            wire = wires.get(field.number)
            if wire is None:
                raise refuse(f"{what} has the unknown field {field.number}")
            # A repeated number may come packed into bytes, or one by one.
            if field.wire != wire and not (field.wire == BYTES and field.number not in once):
                raise refuse(f"field {field.number} of {what} has wire type {field.wire}")
            found = self.fields.setdefault(field.number, [])
            if found and field.number in once:
                raise refuse(f"{what} has field {field.number} twice")
            found.append(field)

    def all(self, number: int) -> list[Field]:
        return self.fields.get(number, [])

    def text(self, number: int) -> str:
        found = self.fields.get(number)
        return read_text(self.view, found[0]) if found else ""

    def number(self, number: int) -> int:
        found = self.fields.get(number)
        return signed(found[0].value) if found else 0

    def texts(self, number: int) -> tuple[str, ...]:
        return tuple(read_text(self.view, field) for field in self.all(number))


def _shape(fields: str) -> _Shape:
    """``"1v 7b* …"``: number, wire letter (v b f d), ``*`` for repeated."""
    letters = {"v": VARINT, "b": BYTES, "f": FIXED32, "d": FIXED64}
    wires: dict[int, int] = {}
    once: set[int] = set()
    for item in fields.split():
        body = item.rstrip("*")
        wires[int(body[:-1])] = letters[body[-1]]
        if body == item:
            once.add(int(body[:-1]))
    return wires, frozenset(once)


_MODEL = _shape("1v 2b 3b 4b 5v 6b 7b 8b* 14b* 25b*")  # 20 training_info and 26 device configuration: not served here
_OPSET = _shape("1b 2v")
_GRAPH = _shape("1b* 2b 5b* 10b 11b* 12b* 13b* 14b* 16b*")  # 15 sparse_initializer: no builder makes them
_NODE = _shape("1b* 2b* 3b 4b 5b* 6b 7b 8b 9b*")
_ATTRIBUTE = _shape("1b 2f 3v 4b 5b 6b 7f* 8v* 9b* 13b 20v 21b")
_TENSOR = _shape("1v* 2v 4f* 5v* 6b* 7v* 8b 9b 10d* 11v* 12b 13b* 14v 16b*")
_ENTRY = _shape("1b 2b")
_VALUE = _shape("1b 2b 3b 4b*")
_TYPE = _shape("1b 4b 5b 6b 9b")
_TENSOR_TYPE = _shape("1v 2b")
_TENSOR_SHAPE = _shape("1b*")
_DIMENSION = _shape("1v 2b 3b")
_FUNCTION = _shape("1b 4b* 5b* 6b* 7b* 8b 9b* 10b 11b* 12b* 13b 14b*")
_ATTRIBUTE_FIELDS = {1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, 8: 9}  # AttributeProto.type -> the field it fills


class _Reader:
    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.nodes = 0
        self.tensors = 0

    def _message(self, start: int, end: int, what: str, shape: _Shape) -> _Message:
        return _Message(self.view, (start, end), what, shape)

    def model(self, start: int, end: int) -> OnnxModel:
        message = self._message(start, end, "the model", _MODEL)
        if not message.all(7):
            raise refuse("there is no graph in it")
        graph = message.all(7)[0]
        return OnnxModel(
            ir_version=message.number(1),
            producer=message.text(2),
            opsets=self._opsets(message.all(8)),
            graph=self._graph(graph.start, graph.end, 1),
            functions=tuple(self._function(field) for field in message.all(25)),
        )

    def _opsets(self, fields: list[Field]) -> dict[str, int]:
        found: dict[str, int] = {}
        for field in fields:
            message = self._message(field.start, field.end, "an operator set", _OPSET)
            domain = message.text(1)
            if domain in found:
                raise refuse(f"the operator set {domain!r} is imported twice")
            found[domain] = message.number(2)
        return found

    def _graph(self, start: int, end: int, depth: int) -> Graph:
        if depth > MAX_DEPTH:
            raise refuse(f"graphs are nested deeper than {MAX_DEPTH}")
        message = self._message(start, end, "a graph", _GRAPH)
        for number in (11, 12):
            if len(message.all(number)) > MAX_NODES:
                raise refuse(f"a graph has more than {MAX_NODES} inputs or outputs")
        return Graph(
            name=message.text(2),
            nodes=tuple(self._node(field, depth) for field in message.all(1)),
            initializers=tuple(self._tensor(field) for field in message.all(5)),
            inputs=tuple(self._value(field) for field in message.all(11)),
            outputs=tuple(self._value(field) for field in message.all(12)),
        )

    def _function(self, field: Field) -> Function:
        message = self._message(field.start, field.end, "a function", _FUNCTION)
        return Function(
            domain=message.text(10),
            name=message.text(1),
            opsets=self._opsets(message.all(9)),
            nodes=tuple(self._node(node, 1) for node in message.all(7)),
        )

    def _node(self, field: Field, depth: int) -> Node:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise refuse(f"it has more than {MAX_NODES} nodes")
        message = self._message(field.start, field.end, "a node", _NODE)
        attributes: dict[str, Attribute] = {}
        for item in message.all(5):
            name, value = self._attribute(item, depth)
            if name in attributes:
                raise refuse(f"a node has the attribute {name!r} twice")
            if value is not None:
                attributes[name] = value
        return Node(
            op_type=message.text(4),
            domain=message.text(7),
            name=message.text(3),
            inputs=message.texts(1),
            outputs=message.texts(2),
            attributes=attributes,
        )

    def _attribute(self, field: Field, depth: int) -> tuple[str, Attribute | None]:
        message = self._message(field.start, field.end, "an attribute", _ATTRIBUTE)
        name, kind = message.text(1), message.number(20)
        if message.all(21):  # a reference to a function's attribute: it has no value of its own
            return name, None
        if kind not in _ATTRIBUTE_FIELDS:
            raise refuse(f"the attribute {name!r} has the type {kind}")
        wanted = _ATTRIBUTE_FIELDS[kind]
        if any(number not in (1, 13, 20, wanted) for number in message.fields):
            raise refuse(f"the attribute {name!r} has values of two types")
        return name, self._attribute_value(message, wanted, depth)

    def _attribute_value(self, message: _Message, wanted: int, depth: int) -> Attribute:
        fields = message.all(wanted)
        if len(fields) > MAX_LIST:
            raise refuse(f"an attribute has more than {MAX_LIST} values")
        readers: dict[int, Callable[[], Attribute]] = {
            2: lambda: read_floats(self.view, fields[0], 1)[0] if fields else 0.0,
            3: lambda: signed(fields[0].value) if fields else 0,
            4: lambda: read_bytes(self.view, fields[0]) if fields else b"",
            5: lambda: self._tensor(fields[0]),
            6: lambda: self._graph(fields[0].start, fields[0].end, depth + 1),
            7: lambda: tuple(number for field in fields for number in read_floats(self.view, field, MAX_LIST)),
            8: lambda: tuple(number for field in fields for number in read_integers(self.view, field, MAX_LIST)),
            9: lambda: tuple(read_bytes(self.view, field) for field in fields),
        }
        if not fields and wanted in (5, 6):
            raise refuse("an attribute has no value")
        return readers[wanted]()

    def _tensor(self, field: Field) -> Tensor:
        self.tensors += 1
        if self.tensors > MAX_NODES:
            raise refuse(f"it has more than {MAX_NODES} tensors")
        message = self._message(field.start, field.end, "a tensor", _TENSOR)
        dims = [dim for item in message.all(1) for dim in read_integers(self.view, item, MAX_RANK)]
        name = message.text(8)
        if len(dims) > MAX_RANK or any(not 0 <= dim < 2**40 for dim in dims):
            raise refuse(f"the tensor {name!r} has the dimensions {dims[:8]}")
        external = self._external(message.all(13), name) if message.number(14) == 1 else None
        if message.number(14) not in (0, 1) or (message.all(13) and external is None):
            raise refuse(f"the tensor {name!r} is both inside and outside of the graph")
        raw = message.all(9)
        if external is not None and any(message.all(number) for number in (4, 5, 6, 7, 9, 10, 11)):
            raise refuse(f"the tensor {name!r} is both inside and outside of the graph")
        return Tensor(
            name=name,
            dims=tuple(dims),
            data_type=message.number(2),
            inline=(raw[0].start, raw[0].end) if raw else None,
            external=external,
        )

    def _external(self, fields: list[Field], name: str) -> ExternalData:
        entries: dict[str, str] = {}
        for field in fields[:MAX_LIST]:
            message = self._message(field.start, field.end, "external data", _ENTRY)
            if message.text(1) in entries:
                raise refuse(f"the external data of {name!r} has {message.text(1)!r} twice")
            entries[message.text(1)] = message.text(2)
        return ExternalData(
            location=entries.get("location", ""),
            offset=_decimal(entries.get("offset", "0"), name),
            length=_decimal(entries["length"], name) if "length" in entries else None,
            other_keys=tuple(sorted(entries.keys() - {"location", "offset", "length", "checksum"})),
        )

    def _value(self, field: Field) -> Value:
        message = self._message(field.start, field.end, "an input or output", _VALUE)
        elem_type, dims = 0, []
        for type_field in message.all(2):
            kind = self._message(type_field.start, type_field.end, "a type", _TYPE)
            for tensor_field in kind.all(1):
                tensor = self._message(tensor_field.start, tensor_field.end, "a tensor type", _TENSOR_TYPE)
                elem_type = tensor.number(1)
                for shape_field in tensor.all(2):
                    dims = self._dimensions(shape_field)
        return Value(name=message.text(1), elem_type=elem_type, dims=tuple(dims))

    def _dimensions(self, field: Field) -> list[int | str | None]:
        shape = self._message(field.start, field.end, "a shape", _TENSOR_SHAPE)
        if len(shape.all(1)) > MAX_RANK:
            raise refuse(f"a shape has more than {MAX_RANK} dimensions")
        dims: list[int | str | None] = []
        for item in shape.all(1):
            dimension = self._message(item.start, item.end, "a dimension", _DIMENSION)
            dims.append(dimension.number(1) if dimension.all(1) else dimension.text(2) or None)
        return dims


def _decimal(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise refuse(f"the external data of {name!r} lies at {text[:40]!r}")
    return int(text)
