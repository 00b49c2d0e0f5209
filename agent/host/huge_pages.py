"""Lays weights that a worker holds in memory of its own in huge pages, where the system allows that.

Every token reads every weight, far more memory than a processor remembers translations for: in pages of 4 KiB it looks
one up for every 4 KiB that it reads, behind a hypervisor twice. The C library could be told to ask for huge pages as it
allocates, but then its whole heap grows by them, which are 32 MiB on a Raspberry Pi 5; so it is done once weights are
there, and only where memory is full already. Files that are mapped stay as their file system has them.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
HUGEPAGE, COLLAPSE = 14, 25
"""``MADV_HUGEPAGE``; ``MADV_COLLAPSE``, which does it now (since Linux 6.1; before, the kernel takes its time)."""

LEAST_PAGES = 4
"""Of a stretch of memory; below, there is nothing to be won."""

FULL = 0.9
"""Share of a stretch that is in memory: what is gathered grows by the rest at most."""


def page_size(settings: Path = SETTINGS) -> int:
    """Bytes of a huge page; 0 where the system has none or wants none."""
    try:
        if "[never]" in (settings / "enabled").read_text():
            return 0
        return int((settings / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def full_stretches(smaps: str, page: int) -> Iterator[range]:
    """Whole pages of a process's own memory that is full and not yet laid out so, by the kernel's account (``smaps``).
    What was asked to stay in small pages does.
    """
    for stretch in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0(?:\s+\[heap\])?\s*\n", stretch)
        sizes = {name: int(size) * 1024 for name, size in re.findall(r"(?m)^(Rss|AnonHugePages):\s+(\d+) kB$", stretch)}
        if head is None or len(sizes) < 2 or re.search(r"(?m)^VmFlags:.*\bnh\b", stretch):
            continue
        start, end = int(head[1], 16), int(head[2], 16)
        whole = range(-(-start // page) * page, end // page * page)
        if len(whole) >= LEAST_PAGES * page and sizes["Rss"] >= FULL * (end - start) > sizes["AnonHugePages"]:
            yield whole


def gather(page: int, stretches: Iterable[range]) -> None:
    """Lay out ``stretches`` of this process, one huge page after the other; the others of its threads may run."""
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for whole in stretches:
        advise(whole.start, len(whole), HUGEPAGE)
        for start in range(whole.start, whole.stop, page):
            advise(start, page, COLLAPSE)


def gather_beside() -> threading.Thread | None:
    """Begin :func:`gather` of what is full now, in a thread, which takes a second for a gigabyte; None where there is
    nothing to do.
    """
    page = page_size()
    if not page:
        return None
    try:
        # Here, and not in the thread: what others reserve meanwhile joins a stretch, which is no longer full then.
        stretches = list(full_stretches(Path("/proc/self/smaps").read_text("ascii", "replace"), page))
    except OSError:  # it is faster with them, and right without
        return None
    thread = threading.Thread(target=gather, args=(page, stretches), name="huge pages", daemon=True)
    thread.start()
    return thread
