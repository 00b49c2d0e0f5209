"""Names, types and shapes of a checkpoint's weights, wherever the numbers are: in files here, on a hub, in a pickle."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct

from contract.errors import BuildRefused
from packager.sources.checkpoint import INDEX_FILE, find_shards, read_weight_map
from packager.sources.weights import StoredTensor, list_tensors

Entry = tuple[str, str, list[int]]
"""Name, type as safetensors writes it, and shape."""


class WeightHeaders(Struct, frozen=True):
    """Weights by the file that holds them. ``directory`` is where their numbers can be read; None: nowhere yet."""

    shards: dict[str, list[StoredTensor]]
    directory: Path | None = None

    @property
    def tensors(self) -> list[StoredTensor]:
        """All of them."""
        return [tensor for tensors in self.shards.values() for tensor in tensors]

    @property
    def parameters(self) -> int:
        """Numbers in all of them."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.end - tensor.start for tensor in self.tensors)

    def entries(self) -> list[Entry]:
        """What stays the same however they are spread over files, for jobs and keys."""
        return sorted((tensor.name, tensor.dtype, list(tensor.shape)) for tensor in self.tensors)

    def rename(self, naming: Callable[[str], str | None]) -> WeightHeaders:
        """The weights that ``naming`` gives a name, by that name; their numbers are nowhere yet."""
        return WeightHeaders(
            {
                shard: [
                    StoredTensor(name, tensor.dtype, tensor.shape, tensor.start, tensor.end)
                    for tensor in tensors
                    if (name := naming(tensor.name)) is not None
                ]
                for shard, tensors in self.shards.items()
            }
        )


def read_headers(path: Path) -> WeightHeaders:
    """Those of the safetensors files in the checkpoint directory ``path``.

    Raises:
        BuildRefused: files are missing or damaged.
    """
    return WeightHeaders({shard.name: list_tensors(shard) for shard in find_shards(path)}, path)


def reported_headers(reported: Iterable[tuple[str, list[tuple[str, str, list[int], int]]]]) -> WeightHeaders:
    """Those that another process read: by file, name, type, shape and the bytes that they take."""
    shards: dict[str, list[StoredTensor]] = {}
    for shard, entries in reported:
        shards[shard] = [StoredTensor(name, dtype, tuple(shape), 0, size) for name, dtype, shape, size in entries]
    return WeightHeaders(shards)


def refuse_wrong_index(path: Path, headers: WeightHeaders, name: str = INDEX_FILE) -> None:
    """Refuse weights that lie in two files, or elsewhere than the index of that ``name`` in ``path`` says.

    Raises:
        BuildRefused: naming the weight.
    """
    counts = Counter(tensor.name for tensor in headers.tensors)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise BuildRefused(f"{path} holds the weight {twice[0]!r} in two files; fetch them again")
    index = path / name
    if not index.is_file():
        return
    at = {tensor.name: shard for shard, tensors in headers.shards.items() for tensor in tensors}
    for weight, shard in read_weight_map(index).items():
        if at.get(weight) != shard:
            raise BuildRefused(f"{index} states that {weight!r} is in {shard}, and it is not; fetch both again")
