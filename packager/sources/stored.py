"""Writing safetensors files out of the bytes of others: weights chosen and named anew, without a copy in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from packager.sources.checkpoint import INDEX_FILE, WHOLE_FILE
from packager.sources.weights import StoredTensor, list_tensors

PIECE = 2**24
"""Bytes copied at a time."""


def rewrite_shards(shards: Sequence[Path], names: Mapping[str, str], out: Path) -> None:
    """The weights of ``shards`` that ``names`` maps to new names, shard by shard, with an index of several."""
    kept = [(shard, [tensor for tensor in list_tensors(shard) if tensor.name in names]) for shard in shards]
    kept = [(shard, tensors) for shard, tensors in kept if tensors]
    index: dict[str, str] = {}
    for number, (shard, tensors) in enumerate(kept, 1):
        file = WHOLE_FILE if len(kept) == 1 else f"model-{number:05}-of-{len(kept):05}.safetensors"
        _write(shard, tensors, names, out / file)
        index |= {names[tensor.name]: file for tensor in tensors}
    if len(kept) > 1:
        (out / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": index}), "utf-8")


def _write(shard: Path, tensors: Sequence[StoredTensor], names: Mapping[str, str], out: Path) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        size = tensor.end - tensor.start
        header[names[tensor.name]] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with shard.open("rb") as source, out.open("wb") as target:
        target.write(len(data).to_bytes(8, "little") + data)
        for tensor in tensors:
            source.seek(tensor.start)
            left = tensor.end - tensor.start
            while left:
                piece = source.read(min(PIECE, left))
                target.write(piece)
                left -= len(piece)
