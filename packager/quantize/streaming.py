"""Quantising one piece of one weight at a time, inside the model builder's process.

The builder turns every weight into fp32 at once before it quantises any (``ir.to_proto`` in ``Model.to_nbits``), which
takes five bytes of memory a parameter. Here the graph that it quantises holds a stub of one element in place of each
weight; where the quantizer asks for a weight's numbers it gets a :class:`Weight`, which hands out fp32 columns in
pieces, straight from the mapped checkpoint. Blocks lie within columns, so the bytes are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PIECE_ELEMENTS = 2**24
"""Weights that exist in fp32 at a time: 64 MiB, and the quantizer's own copies of them."""


class Weight:
    """A matrix ``[inputs, outputs]`` of the checkpoint that looks to the quantizers like an array of ``dtype``."""

    def __init__(self, source: Any, dtype: Any) -> None:
        self._source = source
        self.shape = tuple(source.shape)
        self._torch_dtype = dtype
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))

    def pieces(self) -> Iterator[Array]:
        """Its columns in order, some whole ones at a time."""
        inputs, outputs = self.shape
        step = max(1, PIECE_ELEMENTS // inputs)
        for start in range(0, outputs, step):
            piece = self._source[:, start : start + step].detach().to(self._torch_dtype)
            # The quantizer's own code reads rows one after the other, whatever the strides say.
            yield np.ascontiguousarray(piece.numpy())

    def numpy(self) -> Weight:
        """What a tensor of onnx-ir is asked for."""
        return self

    def copy(self) -> Weight:
        """What an array of numpy is asked for."""
        return self

    @property
    def T(self) -> Weight:
        """Itself: who asks for the transpose reads columns as rows."""
        return self


def stream_weights(model_class: Any) -> None:
    """Let ``model_class``, the builder's ``Model``, quantise weight by weight; for this whole process."""
    import onnx_ir as ir
    import torch
    from onnx_ir.tensor_adapters import to_torch_dtype

    known: dict[str, Weight] = {}
    make_initializer, to_nbits = model_class.make_initializer, model_class.to_nbits

    def remember(self: Any, tensor: Any, /, name: str, *, to: Any = None, raw: bool = False) -> None:
        make_initializer(self, tensor, name, to=to, raw=raw)
        matrix = not raw and isinstance(tensor, torch.Tensor) and tensor.ndim == 2
        if matrix and to in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            known[name] = Weight(tensor, to_torch_dtype(to))

    def quantise(self: Any) -> Any:
        late: dict[str, Weight] = {}
        plain: dict[str, Any] = {}
        for value in self.model.graph.initializers.values():
            users = [use.node.op_type for use in value.uses()]
            kept = any(use.node.name in self.quant_attrs["nodes_to_exclude"] for use in value.uses())
            if value.name in known and users == ["MatMul"] and not kept:
                late[value.name] = known[value.name]
            elif value.name in known and users == ["Gather"] and "Gather" not in self.quant_attrs[QUANTISED]:
                plain[value.name] = value.const_value
            else:
                continue
            value.const_value = ir.Tensor(np.zeros((1, 1), np.float32), name=value.name)
        known.clear()
        with _reading(late):
            made = to_nbits(self)
        for name, tensor in plain.items():
            made.graph.initializers[name].const_value = tensor
        return made

    model_class.make_initializer, model_class.to_nbits = remember, quantise


QUANTISED = "op_types_to_quantize"


@contextlib.contextmanager
def _reading(late: dict[str, Weight]) -> Iterator[None]:
    """Let both of onnxruntime's quantizers find the weights of ``late`` in place of the stubs of these names."""
    from onnxruntime.quantization import matmul_nbits_quantizer as first
    from onnxruntime.quantization.neural_compressor import weight_only as second

    def find(tensor: Any) -> Weight | None:
        return late.get(tensor.name)

    changes: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (first, "ir", lambda module: _Reading(module, "from_proto", find)),
        (first.DefaultWeightOnlyQuantizer, "qbits_block_quant", _by_columns),
        (second, "numpy_helper", lambda module: _Reading(module, "to_array", find)),
        (second, "quant_tensor_k_quant_cuda", _by_rows),
        (second, "quant_tensor", _by_rows),
        (second, "pad_tensor", _padded),
    ]
    with contextlib.ExitStack() as undo:
        for owner, name, change in changes:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, change(getattr(owner, name)))
        yield


class _Reading:
    """The module ``inner``, whose function ``name`` first looks whether ``find`` knows better."""

    def __init__(self, inner: Any, name: str, find: Callable[[Any], Weight | None]) -> None:
        self._inner, self._name, self._find = inner, name, find

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._name:
            return found

        def read(tensor: Any, *more: Any, **named: Any) -> Any:
            weight = self._find(tensor)
            return found(tensor, *more, **named) if weight is None else weight

        return read


def _join(parts: Sequence[Sequence[Array]]) -> tuple[Array, ...]:
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _by_columns(plain: Callable[..., Any]) -> Callable[..., Any]:
    """For a method that takes columns."""

    def quantise(self: Any, weight: Any) -> Any:
        if not isinstance(weight, Weight):
            return plain(self, weight)
        return _join([plain(self, piece) for piece in weight.pieces()])

    return quantise


def _by_rows(plain: Callable[..., Any]) -> Callable[..., Any]:
    """For a function that takes the transpose and cuts it into blocks itself; levels come back as bytes."""

    def quantise(weight: Any, num_bits: int = 4, group_size: int = 32, *more: Any, **named: Any) -> Any:
        if not isinstance(weight, Weight):
            return plain(weight, num_bits, group_size, *more, **named)
        parts = []
        for piece in weight.pieces():
            short = -len(piece) % group_size
            whole = np.pad(piece, ((0, short), (0, 0))) if short else piece
            levels, scale, zero = plain(whole.T, num_bits, group_size, *more, **named)
            parts.append((levels.astype(np.uint8), scale, zero))
        return _join(parts)

    return quantise


def _padded(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Pieces are padded one by one."""

    def pad(weight: Any, group_size: int, k_blocks: int) -> Any:
        return weight if isinstance(weight, Weight) else plain(weight, group_size, k_blocks)

    return pad
