"""An ONNX graph written node by node, its weights streamed into a file beside it: no more than one is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

OPSET = 20
IR_VERSION = 9
MICROSOFT = "com.microsoft"

PAGE = 4096
"""Weights begin at a page, so that the runtime can map them."""

LEAST_OUTSIDE = 1024
"""Bytes from which a weight lies in the file beside the graph."""


class Nodes:
    """The nodes of a graph, or of a graph within one, by the order in which they run."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []

    def node(self, operator: str, *inputs: str, name: str, domain: str = "", **attributes: Any) -> str:
        """One more, with one output, which is called like it."""
        from onnx import helper

        self.nodes.append(
            helper.make_node(operator, list(inputs), [name], name=f"/{name}", domain=domain, **attributes)
        )
        return name

    def cast(self, x: str, kind: str, name: str) -> str:
        """``x`` as numbers of another type, by its name in ONNX."""
        from onnx import TensorProto

        return self.node("Cast", x, name=name, to=getattr(TensorProto, kind))


class GraphWriter(Nodes):
    """A graph at ``path``, its weights in ``path`` + ``.data``; whole once :meth:`save` ran. A context."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._beside = path.with_name(f"{path.name}.data")
        self._tensors: list[Any] = []
        self._file = self._beside.open("wb")

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def constant(self, name: str, value: Sequence[int] | int) -> str:
        """Integers, inside the graph; once, whoever else asks for the name."""
        from onnx import numpy_helper

        if all(tensor.name != name for tensor in self._tensors):
            self._tensors.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def weight(self, name: str, value: Array) -> str:
        """One weight, in its own type."""
        from onnx import numpy_helper

        if value.nbytes < LEAST_OUTSIDE:
            self._tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            return name
        return self.stream(name, value.shape, value.dtype, [value])

    def stream(self, name: str, shape: Sequence[int], dtype: npt.DTypeLike, pieces: Iterable[Array]) -> str:
        """One weight, handed over in pieces."""
        from onnx import TensorProto, helper

        self._file.write(bytes(-self._file.tell() % PAGE))
        start = self._file.tell()
        for piece in pieces:
            self._file.write(np.ascontiguousarray(piece, dtype).tobytes())
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims=list(shape))
        tensor.data_location = TensorProto.EXTERNAL
        where = {"location": self._beside.name, "offset": start, "length": self._file.tell() - start}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        self._tensors.append(tensor)
        return name

    def save(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Write the graph."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, self._path.stem, list(inputs), list(outputs), self._tensors)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="edge-bundle")
        model.ir_version = IR_VERSION
        self._path.write_bytes(model.SerializeToString(deterministic=True))


def value(name: str, kind: str, shape: Sequence[int | str] | None) -> Any:
    """An input or output, of any shape where None is given."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), None if shape is None else list(shape))
