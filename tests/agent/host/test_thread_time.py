"""What a thread computed and waited for, told apart from what others had its core for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host.thread_time import ThreadStopwatch, ThreadTime

SECONDS = st.integers(0, 10**6).map(lambda millis: millis / 1000)
AT_MOST = 120.0


def schedstat(proc: Path, ready: float) -> None:
    (proc / "thread-self").mkdir(exist_ok=True)
    (proc / "thread-self" / "schedstat").write_text(f"123 {round(ready * 1e9)} 7\n")


@given(computed=SECONDS, ready=SECONDS, waited=SECONDS, before=SECONDS)
def test_what_passed_is_divided(
    tmp_path_factory: pytest.TempPathFactory, computed: float, ready: float, waited: float, before: float
) -> None:
    proc = tmp_path_factory.mktemp("proc")
    schedstat(proc, before)
    clock, cpu = iter([before, before + computed + ready + waited]), iter([before, before + computed])
    stopwatch = ThreadStopwatch(lambda: next(clock), lambda: next(cpu), proc)
    schedstat(proc, before + ready)
    took = stopwatch.read()
    assert took.computed == pytest.approx(computed)
    assert took.waited == pytest.approx(waited, abs=1e-6)


@pytest.mark.parametrize("text", [None, "", "12", "a b c"])
def test_a_kernel_that_does_not_count_leaves_it_in_what_was_waited(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "thread-self").mkdir()
        (tmp_path / "thread-self" / "schedstat").write_text(text)
    clock, cpu = iter([10.0, 14.0]), iter([1.0, 2.0])
    assert ThreadStopwatch(lambda: next(clock), lambda: next(cpu), tmp_path).read() == ThreadTime(1.0, 3.0)


@pytest.fixture
def one_core_for_two() -> Iterator[None]:
    """This thread shares a core with a process that never rests."""
    allowed = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            core = {min(allowed)}
            os.sched_setaffinity(other.pid, core)
            os.sched_setaffinity(0, core)
            yield
        finally:
            os.sched_setaffinity(0, allowed)
            other.kill()


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="this kernel does not count it")
def test_others_on_the_core_are_not_what_it_waited_for(one_core_for_two: None, tmp_path: Path) -> None:
    blind, seeing = ThreadStopwatch(proc=tmp_path), ThreadStopwatch()
    end = time.monotonic() + AT_MOST
    while blind.read().waited - seeing.read().waited < 0.05:
        assert time.monotonic() < end
