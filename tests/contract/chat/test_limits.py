"""Work that runs somebody else's program, beside work in other threads of the same process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract.chat.limits import MEMORY_BYTES, Allowance, LimitExceeded, leave_memory_to, run_bounded

LARGE = 8 * MEMORY_BYTES
SECONDS = 60.0


class Meanwhile:
    """What another thread allocates while something runs bounded: neither goes on before the other."""

    def __init__(self) -> None:
        self._bounded, self._allocated = threading.Event(), threading.Event()

    def allocate(self) -> int:
        assert self._bounded.wait(SECONDS)
        try:
            return len(bytearray(LARGE))
        finally:
            self._allocated.set()

    def wait(self) -> bool:
        self._bounded.set()
        return self._allocated.wait(SECONDS)


def test_another_threads_work_gets_the_memory_that_it_needs() -> None:
    meanwhile = Meanwhile()
    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(meanwhile.allocate)
        leave_memory_to(loading)
        assert run_bounded(meanwhile.wait, Allowance())
        assert loading.result() == LARGE


def test_whoever_does_not_say_so_is_held_to_the_limit_too() -> None:
    """Why loading a model has to: a template was compiled meanwhile, and now and then a load found no memory."""
    meanwhile = Meanwhile()
    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(meanwhile.allocate)
        assert run_bounded(meanwhile.wait, Allowance())
        with pytest.raises(MemoryError):
            loading.result()


def test_memory_is_bounded_again_when_that_work_is_done() -> None:
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(len, b"")
        leave_memory_to(done)
    assert done.result() == 0
    with pytest.raises(LimitExceeded, match="more memory than 32 MiB"):
        run_bounded(lambda: len(bytearray(LARGE)), Allowance())


def test_processor_time_of_other_threads_is_not_counted() -> None:
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    def wait() -> bool:
        """Until the process has taken more than there is, this thread next to nothing of it."""
        until = time.process_time() + 0.3
        while time.process_time() < until:
            time.sleep(0.01)
        return True

    allowance = Allowance(seconds=0.15)
    with ThreadPoolExecutor(1) as beside:
        beside.submit(compute)
        try:
            assert run_bounded(wait, allowance)
        finally:
            over.set()
    assert allowance.seconds > 0


def test_its_own_is() -> None:
    with pytest.raises(LimitExceeded, match=r"0\.1 seconds of processor time"):
        run_bounded(lambda: [sum(range(1000)) for _ in range(10**9)], Allowance(seconds=0.1))
