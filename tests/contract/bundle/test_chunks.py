"""Cutting files into chunks."""

from __future__ import annotations

import hashlib
from itertools import accumulate
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from contract.bundle.chunks import cut_sizes, digest_chunks
from contract.bundle.manifest import MAX_CHUNK_BYTES


@given(st.integers(0, 5 * MAX_CHUNK_BYTES), st.lists(st.integers(-10, 6 * MAX_CHUNK_BYTES), max_size=20))
def test_chunks_cover_the_file_and_cut_at_every_boundary(size: int, boundaries: list[int]) -> None:
    sizes = list(cut_sizes(size, boundaries))
    assert sum(sizes) == size
    assert all(1 <= piece <= MAX_CHUNK_BYTES for piece in sizes)
    ends = set(accumulate(sizes))
    assert {offset for offset in boundaries if 0 < offset < size} <= ends


def test_a_tensor_keeps_its_chunks_when_the_one_before_it_grows(tmp_path: Path) -> None:
    tensor = bytes(range(256)) * 8000
    for name, head in (("old", b"x" * 1000), ("new", b"y" * 1700)):
        (tmp_path / name).write_bytes(head + tensor)
    _, old = digest_chunks(tmp_path / "old", [1000])
    _, new = digest_chunks(tmp_path / "new", [1700])
    assert [chunk.sha256 for chunk in old[1:]] == [chunk.sha256 for chunk in new[1:]]
    assert old[0] != new[0]


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    data = b"a" * (MAX_CHUNK_BYTES + 5)
    (tmp_path / "file").write_bytes(data)
    whole, chunks = digest_chunks(tmp_path / "file")
    assert whole == hashlib.sha256(data).hexdigest()
    assert [(c.size, c.sha256) for c in chunks] == [
        (MAX_CHUNK_BYTES, hashlib.sha256(data[:MAX_CHUNK_BYTES]).hexdigest()),
        (5, hashlib.sha256(b"a" * 5).hexdigest()),
    ]


def test_an_empty_file_has_no_chunks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert digest_chunks(tmp_path / "file") == (hashlib.sha256(b"").hexdigest(), [])
