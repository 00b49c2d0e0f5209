"""Memory that is full is laid out in huge pages; what is sparse, small, mapped or asked to be left alone is not."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

import pytest

from agent.host.huge_pages import COLLAPSE, full_stretches, gather, gather_beside, page_size

MIB = 1 << 20
PAGE = 2 * MIB


def stretch(
    start: int, size: int, rss: int, *, huge: int = 0, head: str = "rw-p 00000000 00:00 0", flags: str = ""
) -> str:
    """As the kernel writes one in ``smaps``; sizes in MiB."""
    return (
        f"{start * MIB:x}-{(start + size) * MIB:x} {head} \n"
        f"Size: {size * 1024:14} kB\nRss: {rss * 1024:15} kB\nAnonHugePages: {huge * 1024:5} kB\n"
        f"THPeligible:           1\nVmFlags: rd wr mr mw me ac {flags} \n"
    )


@pytest.mark.parametrize(
    ("smaps", "found"),
    [
        (stretch(64, 32, 32), [range(64 * MIB, 96 * MIB)]),
        (stretch(65, 32, 30), [range(66 * MIB, 96 * MIB)]),
        (
            stretch(64, 32, 32, head="rw-p 00000000 00:00 0                          [heap]"),
            [range(64 * MIB, 96 * MIB)],
        ),
        (stretch(64, 32, 32) + stretch(128, 16, 16), [range(64 * MIB, 96 * MIB), range(128 * MIB, 144 * MIB)]),
    ],
    ids=["whole", "not at a huge page's begin", "the heap", "two"],
)
def test_what_is_full_is_found(smaps: str, found: list[range]) -> None:
    assert list(full_stretches(smaps, PAGE)) == found


@pytest.mark.parametrize(
    "smaps",
    [
        stretch(64, 32, 20),
        stretch(64, 6, 6),
        stretch(64, 32, 32, huge=32),
        stretch(64, 32, 32, flags="nh"),
        stretch(64, 32, 32, head="rw-p 00000000 fe:00 4711                         /bundle/model.onnx.data"),
        stretch(64, 32, 32, head="r-xp 00000000 00:00 0"),
        stretch(64, 32, 32, head="rw-p 00000000 00:00 0                          [stack]"),
        "",
        "nothing that a kernel writes",
    ],
    ids=["sparse", "small", "huge already", "kept small", "a file", "code", "a stack", "empty", "foreign"],
)
def test_what_is_not_is_left_alone(smaps: str) -> None:
    assert list(full_stretches(smaps, PAGE)) == []


@pytest.mark.parametrize(
    ("enabled", "size", "found"),
    [
        ("always [madvise] never", "2097152", PAGE),
        ("[always] madvise never", "33554432", 32 * MIB),
        ("always madvise [never]", "2097152", 0),
        ("always [madvise] never", "no number", 0),
        ("always [madvise] never", None, 0),
    ],
)
def test_what_the_system_wants_counts(tmp_path: Path, enabled: str, size: str | None, found: int) -> None:
    (tmp_path / "enabled").write_text(enabled)
    if size is not None:
        (tmp_path / "hpage_pmd_size").write_text(size)
    assert page_size(tmp_path) == found


def test_a_system_without_them_has_none(tmp_path: Path) -> None:
    assert page_size(tmp_path / "not there") == 0


def stretch_of(memory: mmap.mmap) -> str:
    """What the kernel says of the stretch that ``memory`` lies in."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for one in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        head = re.match("([0-9a-f]+)-([0-9a-f]+) ", one)
        if head is not None and int(head[1], 16) <= address < int(head[2], 16):
            return one
    raise AssertionError("not mapped")


def huge_kib(memory: mmap.mmap) -> int:
    return int(re.findall(r"(?m)^AnonHugePages:\s+(\d+) kB$", stretch_of(memory))[0])


def was_asked(memory: mmap.mmap) -> bool:
    return re.search(r"(?m)^VmFlags:.*\bhg\b", stretch_of(memory)) is not None


def kernel_can() -> bool:
    """Whether it lays out memory at once now: since Linux 6.1, and where there is a huge page that is free."""
    memory = mmap.mmap(-1, 4 * page_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = bytes(len(memory))
    begin = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % page_size()
    try:
        memory.madvise(COLLAPSE, begin, page_size())
    except OSError:
        return False
    return True


def test_memory_of_this_process_is_laid_out_anew_and_holds_what_it_held() -> None:
    page = page_size()
    size = 6 * (page or PAGE)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTDUMP)  # a stretch of its own, not part of a sparse neighbour
    text = bytes(range(256)) * (size // 256)
    memory[:] = text
    before = huge_kib(memory)
    gathering = gather_beside()
    assert (gathering is not None) == bool(page)
    if gathering is not None:
        gathering.join()
        assert was_asked(memory)
        assert huge_kib(memory) > before or not kernel_can()
    assert memory[:] == text


def test_a_kernel_that_does_not_know_how_changes_nothing() -> None:
    """Pages that begin where none can: every call is refused, and that is all."""
    memory = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTDUMP)
    memory[:] = text = b"kept" * PAGE
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + 1
    gather(PAGE, [range(start, start + 2 * PAGE)])
    assert not was_asked(memory)
    assert memory[:] == text
