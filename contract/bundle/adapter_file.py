"""A small bounded reader of ``.onnx_adapter`` files: named fp32 matrices in onnxruntime's FlatBuffers layout.

The schema is onnxruntime's ``adapter_schema.fbs``: a root table ``{format_version, adapter_version, model_version,
parameters}`` whose parameters are tables ``{name, dims, data_type, raw_data}``. The native reader maps the file and
takes it at its word, so every offset and length is looked at here first, and nothing is accepted that a LoRA for a
given base does not need.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from contract.bundle.adapter_slots import Slot
from contract.errors import BundleRefused, StoreBroken
from contract.onnx.graph import FLOAT
from contract.reasons import Reason

IDENTIFIER = b"TORT"
FORMAT_VERSION = 1

MAX_ADAPTER_BYTES = 2**31 - 1
"""FlatBuffers addresses no more."""

MAX_TENSORS = 16384
"""Two for each product of a thousand layers with eight each."""

MAX_NAME_BYTES = 256
MAX_RANK = 1024
"""Ranks in use are 4 to 256; a product of three projections holds those of all three side by side."""


class AdapterTensor(Struct, frozen=True):
    """A matrix and where its fp32 numbers lie in the file."""

    name: str
    dims: tuple[int, ...]
    start: int
    size: int


def _refuse(what: str) -> BundleRefused:
    return BundleRefused(Reason.ADAPTER_INVALID, f"the adapter is not allowed: {what}")


def read_adapter_file(path: Path) -> dict[str, AdapterTensor]:
    """What the file at ``path`` holds, without reading the numbers.

    Raises:
        BundleRefused: ADAPTER_INVALID.
        StoreBroken: it cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                return read_adapter(view)
            finally:
                view.release()
    except ValueError as error:
        raise _refuse("it is empty") from error
    except OSError as error:
        raise StoreBroken(f"{path} cannot be read: {error.strerror}") from error


def read_adapter(data: bytes | memoryview) -> dict[str, AdapterTensor]:
    """The matrices of an adapter file, by name.

    Raises:
        BundleRefused: ADAPTER_INVALID.
    """
    if not 8 <= len(data) <= MAX_ADAPTER_BYTES:
        raise _refuse(f"it has {len(data)} bytes")
    reader = _Reader(data)
    if bytes(data[4:8]) != IDENTIFIER:
        raise _refuse("it is not an adapter of onnxruntime")
    root = reader.table(reader.unsigned(0), 4)
    if reader.integer(root[0]) != FORMAT_VERSION:
        raise _refuse(f"its format is not version {FORMAT_VERSION}")
    start, count = reader.vector(root[3], 4, MAX_TENSORS)
    found: dict[str, AdapterTensor] = {}
    for number in range(count):
        entry = start + 4 * number
        tensor = _parameter(reader, entry + reader.unsigned(entry))
        if tensor.name in found:
            raise _refuse(f"it has {tensor.name!r} twice")
        found[tensor.name] = tensor
    return found


def check_adapter(tensors: Mapping[str, AdapterTensor], slots: Mapping[str, Slot]) -> None:
    """Refuse an adapter that is not made of pairs that fit into ``slots``.

    Raises:
        BundleRefused: ADAPTER_INVALID.
    """
    if not tensors:
        raise _refuse("it holds nothing")
    wanted = {name: slot for slot in slots.values() for name in (slot.first, slot.second)}
    for name in tensors:
        if name not in wanted:
            raise _refuse(f"its base has no place for {name[:80]!r}")
    for slot in {wanted[name].name: wanted[name] for name in tensors}.values():
        first, second = tensors.get(slot.first), tensors.get(slot.second)
        if first is None or second is None:
            raise _refuse(f"it has only one half of {slot.name!r}")
        rank = first.dims[1]
        if first.dims != (slot.width_in, rank) or second.dims != (rank, slot.width_out):
            raise _refuse(
                f"{slot.name!r} is {first.dims} and {second.dims}; its base has ({slot.width_in}, r) and "
                f"(r, {slot.width_out})"
            )


def _parameter(reader: _Reader, position: int) -> AdapterTensor:
    fields = reader.table(position, 4)
    start, size = reader.vector(fields[0], 1, MAX_NAME_BYTES)
    try:
        name = bytes(reader.data[start : start + size]).decode("ascii")
    except UnicodeDecodeError as error:
        raise _refuse("a name is not ASCII") from error
    where, count = reader.vector(fields[1], 8, 2)
    dims = tuple(reader.long(where + 8 * index) for index in range(count))
    if reader.integer(fields[2]) != FLOAT:
        raise _refuse(f"{name!r} is not fp32")
    if len(dims) != 2 or not all(1 <= dim <= 2**31 for dim in dims) or min(dims) > MAX_RANK:
        raise _refuse(f"{name!r} has the dimensions {dims}")
    start, size = reader.vector(fields[3], 1, MAX_ADAPTER_BYTES)
    if size != 4 * dims[0] * dims[1] or start % 4:
        raise _refuse(f"{name!r} has {size} bytes at {start} for the dimensions {dims}")
    return AdapterTensor(name, dims, start, size)


class _Reader:
    """FlatBuffers with every access inside the file. Positions of fields are 0 where the field is absent."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data

    def _unpack(self, layout: str, position: int) -> int:
        if not 0 <= position <= len(self.data) - struct.calcsize(layout):
            raise _refuse("it points outside of itself")
        return int(struct.unpack_from(layout, self.data, position)[0])

    def unsigned(self, position: int) -> int:
        return self._unpack("<I", position)

    def long(self, position: int) -> int:
        return self._unpack("<q", position)

    def integer(self, position: int) -> int:
        """A 32-bit field, 0 (the default of the schema) where it is absent."""
        return self._unpack("<i", position) if position else 0

    def table(self, position: int, most: int) -> list[int]:
        """Positions of the fields of the table at ``position``, which has at most ``most``."""
        vtable = position - self._unpack("<i", position)
        size, body = self._unpack("<H", vtable), self._unpack("<H", vtable + 2)
        if size < 4 or size % 2 or size > 4 + 2 * most:
            raise _refuse("it has fields that are not known")
        offsets = [self._unpack("<H", vtable + 4 + 2 * index) for index in range((size - 4) // 2)]
        if any(offset and not 4 <= offset <= body - 4 for offset in offsets) or position + body > len(self.data):
            raise _refuse("it points outside of itself")
        return [position + offset if offset else 0 for offset in offsets] + [0] * (most - len(offsets))

    def vector(self, position: int, width: int, most: int) -> tuple[int, int]:
        """(start, items) of the vector that the field at ``position`` names; an absent one is empty."""
        if not position:
            return 0, 0
        start = position + self.unsigned(position)
        count = self.unsigned(start)
        if count > most or start + 4 + width * count > len(self.data):
            raise _refuse("it points outside of itself")
        return start + 4, count
