"""Which bytes of a file have to be fetched, and in which ranges (pure)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from contract.bundle.manifest import FileEntry, Manifest

MAX_GAP_BYTES = 16 << 10
"""Bytes we have already that are fetched again to save a request: less than a round trip's worth on any link."""

MAX_RANGE_BYTES = 4 << 20
"""One request asks for at most this much: several run in parallel and wait in memory for their turn."""


class ChunkSlice(NamedTuple):
    """One chunk of a file with its offset."""

    offset: int
    size: int
    sha256: str

    @property
    def end(self) -> int:
        return self.offset + self.size


class Location(NamedTuple):
    """Where bytes are on this device."""

    path: Path
    offset: int


class ByteRange(NamedTuple):
    """Adjacent chunk slices that are fetched with one request."""

    slices: tuple[ChunkSlice, ...]

    @property
    def start(self) -> int:
        return self.slices[0].offset

    @property
    def length(self) -> int:
        return self.slices[-1].end - self.slices[0].offset


def remainder_after(byte_range: ByteRange, chunk_slice: ChunkSlice) -> ByteRange | None:
    """What is left of ``byte_range`` behind ``chunk_slice``."""
    rest = tuple(each for each in byte_range.slices if each.offset > chunk_slice.offset)
    return ByteRange(rest) if rest else None


def matches(data: bytes | memoryview, chunk_slice: ChunkSlice) -> bool:
    """Whether ``data`` is what the manifest lists as ``chunk_slice``."""
    return len(data) == chunk_slice.size and hashlib.sha256(data).hexdigest() == chunk_slice.sha256


def slices_of(entry: FileEntry) -> Iterator[ChunkSlice]:
    """The chunks of a file, in order."""
    offset = 0
    for chunk in entry.chunks:
        yield ChunkSlice(offset, chunk.size, chunk.sha256)
        offset += chunk.size


def unique_files(manifest: Manifest) -> list[FileEntry]:
    """One entry for every content; what is listed twice is fetched once."""
    return list({entry.sha256: entry for entry in manifest.files}.values())


def index_chunks(bundles: Iterable[tuple[Path, Manifest]]) -> dict[str, Location]:
    """Where every chunk of the given bundles lies; the first location found wins."""
    index: dict[str, Location] = {}
    for directory, manifest in bundles:
        for entry in manifest.files:
            for chunk_slice in slices_of(entry):
                index.setdefault(chunk_slice.sha256, Location(directory / entry.path, chunk_slice.offset))
    return index


def index_files(bundles: Iterable[tuple[Path, Manifest]]) -> dict[str, list[Path]]:
    """Where every whole file of the given bundles lies, under whatever name."""
    index: dict[str, list[Path]] = {}
    for directory, manifest in bundles:
        for entry in manifest.files:
            index.setdefault(entry.sha256, []).append(directory / entry.path)
    return index


def plan_ranges(
    slices: Iterable[ChunkSlice],
    missing: Collection[int],
    *,
    max_gap: int = MAX_GAP_BYTES,
    max_range: int = MAX_RANGE_BYTES,
) -> list[ByteRange]:
    """Ranges that cover every slice whose offset is in ``missing``, joined over gaps of up to ``max_gap`` bytes.

    ``slices`` are all slices of the file, in order. A range never begins or ends with a slice that is not missing.
    """
    ranges: list[ByteRange] = []
    byte_range: list[ChunkSlice] = []
    gap: list[ChunkSlice] = []
    for chunk_slice in slices:
        if chunk_slice.offset not in missing:
            gap.append(chunk_slice)
            continue
        joined = [*byte_range, *gap, chunk_slice]
        fits = sum(each.size for each in gap) <= max_gap and chunk_slice.end - joined[0].offset <= max_range
        if byte_range and fits:
            byte_range = joined
        else:
            if byte_range:
                ranges.append(ByteRange(tuple(byte_range)))
            byte_range = [chunk_slice]
        gap = []
    if byte_range:
        ranges.append(ByteRange(tuple(byte_range)))
    return ranges
