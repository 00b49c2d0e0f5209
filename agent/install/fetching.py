"""Filling the parts: what earlier attempts left, then what other bundles here have, then the sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.install.lanes import Lanes
from agent.install.plan import Piece, pieces_of, plan_runs
from agent.install.progress import ProgressMeter
from agent.install.staging import LocalChunks, Part
from contract.durable import Disk
from contract.manifest import FileEntry


def fill_part(
    path: Path,
    entry: FileEntry,
    *,
    resumed: bool,
    local: LocalChunks,
    lanes: Lanes,
    meter: ProgressMeter,
    disk: Disk,
) -> str:
    """Make the part at ``path`` complete and durable; ``resumed``: an earlier attempt may have left bytes in it.

    Returns the SHA-256 of the whole, read back from there.

    Raises:
        SourceInvalid: DIGEST_MISMATCH, when every source delivers other bytes than were signed.
        SourceUnavailable: the sources failed; what was written stays and is found by the next attempt.
        StoreBroken, StoreFull: this disk failed.
    """
    with Part(path, entry, disk) as part:
        pieces = list(pieces_of(entry))
        missing = list(_find_missing(part, pieces, meter)) if resumed else pieces
        missing = list(_reuse(part, missing, local, meter))
        todo = {piece.offset for piece in missing}
        try:
            for piece, data in lanes.fetch(entry, plan_runs(pieces, todo), meter.arrived):
                part.write(piece.offset, data)
                meter.fetched(piece.size, again=0 if piece.offset in todo else piece.size)
                todo.discard(piece.offset)
        finally:
            # What has arrived is worth keeping even if the rest does not come.
            part.sync()
        return part.digest()


def _find_missing(part: Part, pieces: Sequence[Piece], meter: ProgressMeter) -> Iterator[Piece]:
    """Tells as it goes: hashing what an earlier attempt left of a large file takes its time."""
    for piece in pieces:
        if any(part.missing([piece])):
            yield piece
        else:
            meter.found(piece.size)


def _reuse(part: Part, missing: Sequence[Piece], local: LocalChunks, meter: ProgressMeter) -> Iterator[Piece]:
    for piece in missing:
        data = local.read(piece)
        if data is None:
            yield piece
        else:
            part.write(piece.offset, data)
            meter.reused(piece.size)
