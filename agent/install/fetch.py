"""Filling the parts: what earlier attempts left, then what other bundles here have, then the sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.install.fetch_plan import ChunkSlice, plan_ranges, slices_of
from agent.install.install_progress import ProgressMeter
from agent.install.parallel_fetch import ParallelFetcher
from agent.install.staging import LocalChunks, Part
from contract.bundle.manifest import FileEntry
from contract.system.durable import Disk


def fill_part(
    path: Path,
    entry: FileEntry,
    *,
    resumed: bool,
    local: LocalChunks,
    fetcher: ParallelFetcher,
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
        slices = list(slices_of(entry))
        missing = list(_find_missing(part, slices, meter)) if resumed else slices
        missing = list(_reuse(part, missing, local, meter))
        todo = {chunk_slice.offset for chunk_slice in missing}
        try:
            for chunk_slice, data in fetcher.fetch(entry, plan_ranges(slices, todo), meter.arrived):
                part.write(chunk_slice.offset, data)
                meter.fetched(chunk_slice.size, again=0 if chunk_slice.offset in todo else chunk_slice.size)
                todo.discard(chunk_slice.offset)
        finally:
            # What has arrived is worth keeping even if the rest does not come.
            part.sync()
        return part.digest()


def _find_missing(part: Part, slices: Sequence[ChunkSlice], meter: ProgressMeter) -> Iterator[ChunkSlice]:
    """Tells as it goes: hashing what an earlier attempt left of a large file takes its time."""
    for chunk_slice in slices:
        if any(part.missing([chunk_slice])):
            yield chunk_slice
        else:
            meter.found(chunk_slice.size)


def _reuse(part: Part, missing: Sequence[ChunkSlice], local: LocalChunks, meter: ProgressMeter) -> Iterator[ChunkSlice]:
    for chunk_slice in missing:
        data = local.read(chunk_slice)
        if data is None:
            yield chunk_slice
        else:
            part.write(chunk_slice.offset, data)
            meter.reused(chunk_slice.size)
