"""How much of a file anybody has read: the kernel keeps the pages of it, whichever process asked and however."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def forget(path: Path) -> None:
    """Let the kernel forget what it has of ``path``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def pages_read(path: Path) -> float:
    """The share of ``path`` that was read since it was forgotten, read ahead included."""
    size = path.stat().st_size
    count = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long],
    )
    libc.mincore.argtypes = libc.munmap.argtypes = None
    handle = os.open(path, os.O_RDONLY)
    try:
        where = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        held = (ctypes.c_ubyte * count)()
        if libc.mincore(ctypes.c_void_p(where), ctypes.c_size_t(size), held) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        libc.munmap(ctypes.c_void_p(where), ctypes.c_size_t(size))
    finally:
        os.close(handle)
    return sum(page & 1 for page in held) / count
