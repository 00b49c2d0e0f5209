"""Whether a conversion is in the cache already, told without reading the source: by how large it would be."""

from __future__ import annotations

from pathlib import Path

WITHIN_BYTES = 8 * 2**20
"""Of headers and the like, which no estimate of a conversion's size has."""


def holds_converted(cache: Path, pattern: str, size: int, *, within: int = WITHIN_BYTES) -> bool:
    """Whether an entry of that name holds about ``size`` bytes of weights, ``within`` bytes more or less.

    The digest that names an entry takes as long to compute as the source takes to read. An entry of another source of
    that very size lets an estimate pass; the conversion itself is then refused for what it lacks.
    """
    return any(
        abs(sum(map(_size_of, entry.glob("*.safetensors"))) - size) <= within
        for entry in (cache / "checkpoints").glob(pattern)
    )


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # the cache is being cleaned
        return 0
