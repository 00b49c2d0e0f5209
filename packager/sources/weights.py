"""Looking at weights without loading a model: memory-mapped, a tensor at a time."""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from contract import strict_json
from contract.errors import BuildRefused, BundleRefused
from packager.sources.safetensors_header import MAX_HEADER_BYTES, read_header

Array = npt.NDArray[Any]

PIECE = 2**22
"""Elements looked at in one go."""

MATRIX = 4096
"""Numbers of a matrix of which some must be none of zero; smaller ones, and vectors, may be anything."""

HOLE = 2**16
"""Bytes at the end of a file that are not all left out by those who write a file to its end."""

_EXPONENT: dict[str, tuple[np.dtype[Any], int]] = {
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F16": (np.dtype("<u2"), 0x7C00),
    "F32": (np.dtype("<u4"), 0x7F800000),
}
"""An exponent of all ones is an infinity or no number at all, in each of the three formats."""


_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Of an element, by the library's names of types."""

Size = Annotated[int, Meta(ge=0)]


class _Entry(Struct):
    """What a header says of a tensor; bytes are counted from the header's end."""

    dtype: str
    shape: tuple[Size, ...]
    data_offsets: tuple[Size, Size]


class StoredTensor(Struct, frozen=True):
    """One tensor of a safetensors file; ``start`` and ``end`` are bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def list_tensors(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
        BuildRefused: its header is damaged.
    """
    return parse_header(read_header(path), path.name)


def count_parameters(path: Path) -> int:
    """Elements of all tensors in ``path``, after checking that the file has exactly the bytes that they need.

    Raises:
        BuildRefused: the file is truncated or is not a safetensors file.
    """
    size, header = path.stat().st_size, read_header(path)
    tensors = parse_header(header, path.name)
    end = max((tensor.end for tensor in tensors), default=8 + len(header))
    if end != size:
        raise BuildRefused(f"{path.name} has {size} bytes, its header speaks of {end}; fetch it again")
    return sum(math.prod(tensor.shape) for tensor in tensors)


def parse_header(data: bytes, name: str) -> list[StoredTensor]:
    """The tensors that the header ``data`` of a safetensors file lists: one after the other, as the library wants them,
    each of the bytes that type and shape take.

    Raises:
        BuildRefused: it is damaged.
    """
    length = len(data)
    try:
        header = strict_json.loads(data, max_bytes=MAX_HEADER_BYTES, what=name)
        entries = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
        listed = msgspec.convert(entries, dict[str, _Entry], strict=True)
    except (BundleRefused, AttributeError, msgspec.ValidationError) as error:
        raise BuildRefused(f"{name} has a damaged header; fetch it again") from error
    at = 0
    for tensor, entry in sorted(listed.items(), key=lambda item: item[1].data_offsets):
        start, end = entry.data_offsets
        if entry.dtype not in _BITS:
            raise BuildRefused(f"the weights {tensor!r} in {name} are of the type {entry.dtype[:40]!r}, which is none")
        needed = -(-math.prod(entry.shape) * _BITS[entry.dtype] // 8)
        if (start, end) != (at, at + needed):
            raise BuildRefused(
                f"the header of {name} is damaged: the weights {tensor!r} take {needed} bytes by type and shape, and "
                f"lie at {start} to {end}, behind {at}; fetch it again"
            )
        at = end
    return [
        StoredTensor(
            tensor, entry.dtype, entry.shape, 8 + length + entry.data_offsets[0], 8 + length + entry.data_offsets[1]
        )
        for tensor, entry in listed.items()
    ]


def refuse_doubled(shards: list[Path]) -> None:
    """Refuse a weight that two files hold: which of them counts, nobody says.

    Raises:
        BuildRefused: naming it and both files.
    """
    holder: dict[str, Path] = {}
    for shard in shards:
        for tensor in list_tensors(shard):
            first = holder.setdefault(tensor.name, shard)
            if first != shard:
                raise BuildRefused(
                    f"{first.name} and {shard.name} both hold the weights {tensor.name!r}; fetch the checkpoint again, "
                    "or remove the file that does not belong to it and name the other one in the index"
                )


def refuse_broken_numbers(shards: list[Path], on_progress: Callable[[float, float], None]) -> None:
    """Refuse weights with a NaN or an infinity among them: whatever is computed with one is none either. And those that
    were never written, as an interrupted download leaves them in a file of the right size: a matrix of nothing but
    zeros, or a hole at the end of the file.

    Raises:
        BuildRefused: naming the tensor.
    """
    total = sum(shard.stat().st_size for shard in shards)
    done = 0
    for shard in shards:
        with shard.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tensors = sorted(list_tensors(shard), key=lambda tensor: tensor.start)
            if tensors and _is_hole(file.fileno(), tensors[-1].end - HOLE, tensors[-1].end):
                raise BuildRefused(_unwritten(tensors[-1].name, shard))
            for tensor in tensors:
                if tensor.dtype in _EXPONENT:
                    _refuse_broken(data, tensor, shard)
                done += tensor.end - tensor.start
                on_progress(done, total)


def _refuse_broken(data: mmap.mmap, tensor: StoredTensor, shard: Path) -> None:
    written = math.prod(tensor.shape) < MATRIX or sum(size > 1 for size in tensor.shape) < 2
    for piece in _pieces(data, tensor):
        if _broken(piece, tensor):
            raise BuildRefused(
                f"the weights {tensor.name!r} in {shard.name} hold a value that is not a number or infinite; "
                "fetch or train them again"
            )
        written = written or bool(piece.any())
    if not written:
        raise BuildRefused(_unwritten(tensor.name, shard))


def _unwritten(name: str, shard: Path) -> str:
    return (
        f"the weights {name!r} in {shard.name} are zeros that were never written, as an interrupted download leaves "
        "them; fetch the file again"
    )


def _is_hole(descriptor: int, start: int, end: int) -> bool:
    """Whether nothing was ever written there, by the account of a file system that keeps one."""
    try:
        return start >= 0 and os.lseek(descriptor, start, os.SEEK_DATA) >= end
    except OSError as error:
        return error.errno == errno.ENXIO  # no data from there on


def find_zeros(tensors: Iterable[tuple[Path, StoredTensor]]) -> list[str]:
    """Names of those that hold nothing but zeros."""
    found = []
    for path, tensor in tensors:
        with path.open("rb") as file:
            file.seek(tensor.start)
            if not any(file.read(tensor.end - tensor.start)):
                found.append(tensor.name)
    return found


def refuse_different_tie(first: tuple[Path, StoredTensor], second: tuple[Path, StoredTensor]) -> None:
    """Refuse two weights of a file that the configuration says are one, unless they are.

    transformers leaves them apart then, with a line in a log, and the model builder takes one for both.

    Raises:
        BuildRefused: they differ.
    """
    if not _same_bytes(first, second):
        raise BuildRefused(
            f"the files hold a {first[1].name!r} that differs from {second[1].name!r}, although tie_word_embeddings "
            "states that they are one; set that to false in config.json if the model was trained with both, or remove "
            f"{first[1].name!r}"
        )


def _same_bytes(first: tuple[Path, StoredTensor], second: tuple[Path, StoredTensor]) -> bool:
    (one_path, one), (other_path, other) = first, second
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one_path.open("rb") as left, other_path.open("rb") as right:
        left.seek(one.start)
        right.seek(other.start)
        remaining = one.end - one.start
        while remaining:
            size = min(PIECE, remaining)
            if left.read(size) != right.read(size):
                return False
            remaining -= size
    return True


def _pieces(data: mmap.mmap, tensor: StoredTensor) -> Iterator[Array]:
    dtype, _ = _EXPONENT[tensor.dtype]
    step = PIECE * dtype.itemsize
    for start in range(tensor.start, tensor.end, step):
        # Copied out: a view would keep the map from being closed.
        yield np.frombuffer(data[start : min(start + step, tensor.end)], dtype)


def _broken(piece: Array, tensor: StoredTensor) -> bool:
    exponent = _EXPONENT[tensor.dtype][1]
    return bool(((piece & exponent) == exponent).any())
