"""What a SQLite database in WAL mode holds, read from its two files alone: for a disk on which SQLite cannot make the
files that it needs even to read. Pure. The format: https://sqlite.org/walformat.html and fileformat2.html.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
LITTLE, BIG = 0x377F0682, 0x377F0683
"""The first word of a log: in which order the words of its checksums are read."""

_PAGE_SIZES = {1 << power for power in range(9, 17)}
_WORD = 0xFFFFFFFF


def merge(database: bytes, log: bytes) -> bytes:
    """The database with every transaction that was committed to the log, as one without a log.

    A log that is empty, torn or of an earlier time counts as far as it is whole, as SQLite itself reads it.
    """
    pages = bytearray(database)
    pending: list[tuple[int, memoryview]] = []
    for number, size_after, page in _frames(memoryview(log)):
        pending.append((number, page))
        if not size_after:
            continue
        whole = size_after * len(page)
        pages = pages[:whole].ljust(whole, b"\0")
        for each, content in pending:
            if each <= size_after:
                pages[(each - 1) * len(content) : each * len(content)] = content
        pending.clear()
    if len(pages) >= 20:
        # File format versions: 2 says that there is a log beside it.
        pages[18] = pages[19] = 1
    return bytes(pages)


def _frames(log: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Page number, size of the database after this commit (0 within a transaction), and content; the whole ones."""
    if len(log) < HEADER_BYTES:
        return
    words = [int.from_bytes(log[at : at + 4], "big") for at in range(0, HEADER_BYTES, 4)]
    magic, page_size, salts, expected = words[0], words[2], words[4:6], (words[6], words[7])
    if magic not in (LITTLE, BIG) or page_size not in _PAGE_SIZES:
        return
    little = magic == LITTLE
    sums = _checksum(log[:24], (0, 0), little=little)
    if sums != expected:
        return
    step = FRAME_HEADER_BYTES + page_size
    for start in range(HEADER_BYTES, len(log) - step + 1, step):
        head = [int.from_bytes(log[at : at + 4], "big") for at in range(start, start + FRAME_HEADER_BYTES, 4)]
        page = log[start + FRAME_HEADER_BYTES : start + step]
        sums = _checksum(log[start : start + 8], sums, little=little)
        sums = _checksum(page, sums, little=little)
        if head[2:4] != salts or sums != (head[4], head[5]) or not head[0]:
            return
        yield head[0], head[1], page


def _checksum(data: memoryview, sums: tuple[int, int], *, little: bool) -> tuple[int, int]:
    words = array("I", bytes(data))
    if little != (sys.byteorder == "little"):
        words.byteswap()
    first, second = sums
    pairs = iter(words)
    for one, other in zip(pairs, pairs, strict=True):
        first = (first + one + second) & _WORD
        second = (second + other + first) & _WORD
    return first, second
