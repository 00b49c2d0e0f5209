"""Where files are cut into chunks.

Weight files are cut at tensor boundaries first, so that a change to one layer changes the chunks of that layer only
and a shifted tensor keeps its digest; then at :data:`~contract.bundle.manifest.MAX_CHUNK_BYTES`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from contract.bundle.manifest import MAX_CHUNK_BYTES, Chunk


def cut_sizes(size: int, boundaries: Iterable[int] = ()) -> Iterator[int]:
    """Chunk sizes, in order, for a file of ``size`` bytes with tensors starting or ending at ``boundaries``.

    Boundaries outside the file are ignored.
    """
    cuts = sorted({0, size, *(offset for offset in boundaries if 0 < offset < size)})
    for start, end in itertools.pairwise(cuts):
        whole, rest = divmod(end - start, MAX_CHUNK_BYTES)
        yield from [MAX_CHUNK_BYTES] * whole
        if rest:
            yield rest


def digest_chunks(path: Path, boundaries: Iterable[int] = ()) -> tuple[str, list[Chunk]]:
    """Read ``path`` once; return the SHA-256 of the whole and its chunks.

    Raises:
        OSError: the file cannot be read.
    """
    whole = hashlib.sha256()
    chunks: list[Chunk] = []
    with path.open("rb") as file:
        for size in cut_sizes(path.stat().st_size, boundaries):
            piece = file.read(size)
            if len(piece) != size:
                raise OSError(f"{path} became shorter while it was read")
            whole.update(piece)
            chunks.append(Chunk(size=size, sha256=hashlib.sha256(piece).hexdigest()))
    return whole.hexdigest(), chunks
