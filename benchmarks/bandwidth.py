"""How fast this machine reads memory with so many threads: what a decoding step cannot be faster than.

    python -m benchmarks.bandwidth [THREADS]

Every thread looks for a byte in its part of a large block in which it does not occur (the C library's ``memchr``, which
only reads, with the widest instructions of the processor).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time

BLOCK = 2**28
"""Bytes for each thread, many times what caches hold."""

TRIES = 3


def read_bandwidth(threads: int, block: int = BLOCK, tries: int = TRIES) -> float:
    """Bytes a second, the best of some tries: whatever disturbs makes it less."""
    find = ctypes.CDLL(None).memchr
    find.restype = ctypes.c_void_p
    find.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memory = ctypes.create_string_buffer(threads * block)
    start = ctypes.addressof(memory)
    ctypes.memset(start, 1, threads * block)  # pages that were never written are all the same one
    best = 0.0
    for _ in range(tries):
        reading = [
            threading.Thread(target=find, args=(start + number * block, 0, block - 1)) for number in range(threads)
        ]
        began = time.perf_counter()
        for thread in reading:
            thread.start()
        for thread in reading:
            thread.join()
        best = max(best, threads * block / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else len(os.sched_getaffinity(0))
    print(f"{read_bandwidth(wanted) / 1e9:.1f} GB/s with {wanted} threads")
