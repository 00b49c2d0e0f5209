"""Filling the parts: what earlier attempts left, then what other bundles here have, then the sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from agent.install.plan import Piece, Run, pieces_of, plan_runs
from agent.install.progress import ProgressMeter
from agent.install.sources import Mirrors
from agent.install.staging import LocalChunks, Part, matches
from contract.durable import Disk
from contract.errors import BundleRefused, SourceUnavailable
from contract.layout import object_path
from contract.manifest import MAX_CHUNK_BYTES, FileEntry
from contract.reasons import Reason
from contract.source import BundleSource


def fill_part(
    path: Path,
    entry: FileEntry,
    *,
    resumed: bool,
    local: LocalChunks,
    mirrors: Mirrors,
    meter: ProgressMeter,
    disk: Disk,
) -> None:
    """Make the part at ``path`` complete and durable; ``resumed``: an earlier attempt may have left bytes in it.

    Raises:
        BundleRefused: DIGEST_MISMATCH, when every source delivers other bytes than were signed.
        SourceUnavailable: the sources failed; what was written stays and is found by the next attempt.
        StoreBroken, StoreFull: this disk failed.
    """
    with Part(path, entry, disk) as part:
        pieces = list(pieces_of(entry))
        missing = list(part.missing(pieces)) if resumed else pieces
        meter.found(entry.size - sum(piece.size for piece in missing))
        missing = list(_reuse(part, missing, local, meter))
        todo = {piece.offset for piece in missing}
        try:
            for run in plan_runs(pieces, todo):
                mirrors.first_working(partial(fetch_run, part, run, todo, meter))
        finally:
            # What has arrived is worth keeping even if the rest does not come.
            part.sync()


def _reuse(part: Part, missing: Sequence[Piece], local: LocalChunks, meter: ProgressMeter) -> Iterator[Piece]:
    for piece in missing:
        data = local.read(piece)
        if data is None:
            yield piece
        else:
            part.write(piece.offset, data)
            meter.reused(piece.size)


def fetch_run(part: Part, run: Run, todo: set[int], meter: ProgressMeter, source: BundleSource) -> None:
    """Fetch one range; every piece is verified before it is written, and crossed off ``todo`` (offsets).

    Raises:
        BundleRefused: DIGEST_MISMATCH.
        SourceUnavailable, StoreBroken, StoreFull.
    """
    buffer = bytearray()
    pieces = iter(run.pieces)
    piece: Piece | None = next(pieces)
    for data in source.stream(object_path(part.entry.sha256), run.start, run.length):
        buffer += data
        if len(buffer) > 2 * MAX_CHUNK_BYTES:
            raise SourceUnavailable(f"{source.description} delivers larger pieces than agreed")
        taken = 0
        while piece is not None and len(buffer) - taken >= piece.size:
            with memoryview(buffer) as view, view[taken : taken + piece.size] as chunk:
                _accept(part, piece, chunk, source)
            meter.fetched(piece.size, again=0 if piece.offset in todo else piece.size)
            todo.discard(piece.offset)
            taken += piece.size
            piece = next(pieces, None)
        del buffer[:taken]
    if piece is not None or buffer:
        raise SourceUnavailable(f"{source.description} delivered another length than asked for")


def _accept(part: Part, piece: Piece, chunk: memoryview, source: BundleSource) -> None:
    if not matches(chunk, piece):
        raise BundleRefused(
            Reason.DIGEST_MISMATCH,
            f"{source.description} has other bytes for {part.entry.path} than were signed",
            field=part.entry.path,
        )
    part.write(piece.offset, chunk)
