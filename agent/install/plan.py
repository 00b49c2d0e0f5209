"""Which bytes of a file have to be fetched, and in which ranges (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from contract.manifest import FileEntry, Manifest

MAX_GAP_BYTES = 16 << 10
"""Bytes we have already that are fetched again to save a request: less than a round trip's worth on any link."""

MAX_RUN_BYTES = 4 << 20
"""One request asks for at most this much: several run in parallel and wait in memory for their turn."""


class Piece(NamedTuple):
    """One chunk of a file with the place it has there."""

    offset: int
    size: int
    sha256: str

    @property
    def end(self) -> int:
        return self.offset + self.size


class Place(NamedTuple):
    """Where bytes lie on this device."""

    path: Path
    offset: int


class Run(NamedTuple):
    """Neighbouring pieces that are fetched with one request."""

    pieces: tuple[Piece, ...]

    @property
    def start(self) -> int:
        return self.pieces[0].offset

    @property
    def length(self) -> int:
        return self.pieces[-1].end - self.pieces[0].offset


def after(run: Run, piece: Piece) -> Run | None:
    """What is left of ``run`` behind ``piece``."""
    rest = tuple(each for each in run.pieces if each.offset > piece.offset)
    return Run(rest) if rest else None


def pieces_of(entry: FileEntry) -> Iterator[Piece]:
    """The chunks of a file, in order."""
    offset = 0
    for chunk in entry.chunks:
        yield Piece(offset, chunk.size, chunk.sha256)
        offset += chunk.size


def unique_files(manifest: Manifest) -> list[FileEntry]:
    """One entry for every content; what is listed twice is fetched once."""
    return list({entry.sha256: entry for entry in manifest.files}.values())


def index_chunks(bundles: Iterable[tuple[Path, Manifest]]) -> dict[str, Place]:
    """Where every chunk of the given bundles lies; the first place found wins."""
    index: dict[str, Place] = {}
    for directory, manifest in bundles:
        for entry in manifest.files:
            for piece in pieces_of(entry):
                index.setdefault(piece.sha256, Place(directory / entry.path, piece.offset))
    return index


def index_files(bundles: Iterable[tuple[Path, Manifest]]) -> dict[str, list[Path]]:
    """Where every whole file of the given bundles lies, under whatever name."""
    index: dict[str, list[Path]] = {}
    for directory, manifest in bundles:
        for entry in manifest.files:
            index.setdefault(entry.sha256, []).append(directory / entry.path)
    return index


def split_reusable(pieces: Iterable[Piece], index: Mapping[str, Place]) -> tuple[list[Piece], list[Piece]]:
    """(to copy from this device, to fetch)."""
    copies: list[Piece] = []
    fetches: list[Piece] = []
    for piece in pieces:
        (copies if piece.sha256 in index else fetches).append(piece)
    return copies, fetches


def plan_runs(
    pieces: Iterable[Piece],
    missing: Collection[int],
    *,
    max_gap: int = MAX_GAP_BYTES,
    max_run: int = MAX_RUN_BYTES,
) -> list[Run]:
    """Ranges that cover every piece whose offset is in ``missing``, joined over gaps of up to ``max_gap`` bytes.

    ``pieces`` are all pieces of the file, in order. A run never begins or ends with a piece that is not missing.
    """
    runs: list[Run] = []
    run: list[Piece] = []
    gap: list[Piece] = []
    for piece in pieces:
        if piece.offset not in missing:
            gap.append(piece)
            continue
        joined = [*run, *gap, piece]
        fits = sum(each.size for each in gap) <= max_gap and piece.end - joined[0].offset <= max_run
        if run and fits:
            run = joined
        else:
            if run:
                runs.append(Run(tuple(run)))
            run = [piece]
        gap = []
    if run:
        runs.append(Run(tuple(run)))
    return runs
