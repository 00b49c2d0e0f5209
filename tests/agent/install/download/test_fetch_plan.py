"""Which ranges are fetched."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from agent.install.download.fetch_plan import ChunkSlice, plan_ranges


def file_of(sizes: list[int]) -> list[ChunkSlice]:
    pieces, offset = [], 0
    for number, size in enumerate(sizes):
        pieces.append(ChunkSlice(offset, size, hashlib.sha256(str(number).encode()).hexdigest()))
        offset += size
    return pieces


sizes = st.lists(st.integers(1, 5000), min_size=1, max_size=40)


@given(sizes, st.data(), st.integers(0, 6000), st.integers(1, 20_000))
def test_runs_cover_what_is_missing_and_waste_only_small_gaps(
    sizes: list[int], data: st.DataObject, max_gap: int, max_run: int
) -> None:
    pieces = file_of(sizes)
    missing = {piece.offset for piece in pieces if data.draw(st.booleans())}
    runs = plan_ranges(pieces, missing, max_gap=max_gap, max_range=max_run)
    covered = [piece for run in runs for piece in run.slices]
    assert missing <= {piece.offset for piece in covered}
    assert covered == sorted(set(covered)), "in order and nothing twice"
    for run in runs:
        assert run.slices[0].offset in missing
        assert run.slices[-1].offset in missing
        assert run.length == sum(piece.size for piece in run.slices), "pieces of a run are neighbours"
        assert run.length <= max_run or len(run.slices) == 1
        wasted = 0
        for piece in run.slices:
            wasted = wasted + piece.size if piece.offset not in missing else 0
            assert wasted <= max_gap


@given(sizes)
def test_a_file_that_is_all_missing_becomes_runs_without_gaps(sizes: list[int]) -> None:
    pieces = file_of(sizes)
    runs = plan_ranges(pieces, {piece.offset for piece in pieces}, max_gap=0, max_range=10_000)
    assert [piece for run in runs for piece in run.slices] == pieces


def test_nothing_missing_needs_no_request() -> None:
    assert plan_ranges(file_of([10, 20]), set()) == []
