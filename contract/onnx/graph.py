"""What an ONNX graph file claims, as :mod:`contract.onnx.wire` reads it and :mod:`contract.onnx.rules` judges it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from msgspec import Struct

ELEMENT_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2, 27: 6, 28: 6,
}  # fmt: skip
"""Bits of one element by TensorProto.DataType; strings (8) have none."""

FLOAT, INT8, INT64, FLOAT16, BFLOAT16 = 1, 3, 7, 10, 16


class ExternalData(Struct, frozen=True):
    """Where a tensor's bytes lie outside the graph file. ``length`` None: as many as the tensor needs."""

    location: str
    offset: int
    length: int | None
    other_keys: tuple[str, ...] = ()


class Tensor(Struct, frozen=True):
    """A tensor's claim: ``inline`` is the span of its raw bytes in the graph file, if they are there."""

    name: str
    dims: tuple[int, ...]
    data_type: int
    inline: tuple[int, int] | None
    external: ExternalData | None

    @property
    def elements(self) -> int:
        """How many elements ``dims`` make."""
        count = 1
        for dim in self.dims:
            count *= dim
        return count

    @property
    def needed_bytes(self) -> int | None:
        """Bytes that ``dims`` and ``data_type`` need; None for strings and types this reader does not know."""
        bits = ELEMENT_BITS.get(self.data_type)
        return None if bits is None else -(-self.elements * bits // 8)


class Value(Struct, frozen=True):
    """A graph input or output; a dimension is a number, a name, or None when the graph leaves it open."""

    name: str
    elem_type: int
    dims: tuple[int | str | None, ...]


Attribute = Union[int, float, bytes, tuple[int, ...], tuple[float, ...], tuple[bytes, ...], Tensor, "Graph"]


class Node(Struct, frozen=True):
    """One operator. Attributes hold int, float, bytes, tuples of these, a :class:`Tensor` or a :class:`Graph`."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute, or ``default`` when it is absent or of another type."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default


class Graph(Struct, frozen=True):
    """A graph or subgraph."""

    name: str
    nodes: tuple[Node, ...]
    initializers: tuple[Tensor, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


class Function(Struct, frozen=True):
    """A function local to the model."""

    domain: str
    name: str
    opsets: dict[str, int]
    nodes: tuple[Node, ...]


class OnnxModel(Struct, frozen=True):
    """What a graph file claims."""

    ir_version: int
    producer: str
    opsets: dict[str, int]
    graph: Graph
    functions: tuple[Function, ...]

    def walk_nodes(self) -> Iterator[Node]:
        """Every node, those of subgraphs and functions too."""
        pending = list(reversed(self.graph.nodes))
        for function in self.functions:
            pending.extend(function.nodes)
        while pending:
            node = pending.pop()
            yield node
            for value in node.attributes.values():
                if isinstance(value, Graph):
                    pending.extend(value.nodes)

    def walk_tensors(self) -> Iterator[Tensor]:
        """Every tensor, those of attributes and subgraphs too."""
        yield from self.graph.initializers
        for node in self.walk_nodes():
            for value in node.attributes.values():
                if isinstance(value, Tensor):
                    yield value
                elif isinstance(value, Graph):
                    yield from value.initializers
