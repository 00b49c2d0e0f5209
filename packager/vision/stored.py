"""Weights out of a checkpoint's files as fp32, one at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packager.sources.checkpoint import find_shards
from packager.sources.weights import StoredTensor, list_tensors
from packager.vision.judging import published_name

Floats = npt.NDArray[np.float32]

ROWS_BYTES = 2**24
"""Of a piece of a large weight."""

_TYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}


class StoredWeights:
    """The weights of the checkpoint in a directory, by their published names."""

    def __init__(self, directory: Path) -> None:
        self._at: dict[str, tuple[Path, StoredTensor]] = {
            published_name(tensor.name): (shard, tensor)
            for shard in find_shards(directory)
            for tensor in list_tensors(shard)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one weight."""
        return self._at[name][1].shape

    def read(self, name: str) -> Floats:
        """One weight whole."""
        return np.concatenate(list(self.rows(name))).reshape(self.shape(name))

    def rows(self, name: str) -> Iterator[Floats]:
        """One weight in pieces of whole rows."""
        shard, tensor = self._at[name]
        dtype = _TYPES[tensor.dtype]
        width = int(np.prod(tensor.shape[1:], dtype=np.int64))
        step = max(1, ROWS_BYTES // (width * dtype.itemsize)) * width * dtype.itemsize
        with shard.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for start in range(tensor.start, tensor.end, step):
                yield _floats(np.frombuffer(data[start : min(start + step, tensor.end)], dtype), width)


def _floats(piece: npt.NDArray[Any], width: int) -> Floats:
    if piece.dtype == np.dtype("<u2"):  # bfloat16: the upper half of fp32
        return (piece.astype(np.uint32) << 16).view(np.float32).reshape(-1, width)
    return piece.astype(np.float32).reshape(-1, width)
