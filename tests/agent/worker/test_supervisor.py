"""Real worker processes that answer, crash, hang and are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.engine.interface import READ_SLICE, Generation
from agent.worker import protocol
from agent.worker.protocol import allowed_silence
from agent.worker.settings import WorkerSettings
from agent.worker.stderr_tail import StderrTail
from agent.worker.supervisor import LoadTimeout, WorkerProcess, WorkerStarter
from contract.errors import EngineFailed
from tests.agent.worker.double import DOUBLE
from tests.agent.worker.listening import PATIENCE, Listener, closed


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def with_worker(bundle: Path, scenario: Callable[[WorkerProcess, Listener], Awaitable[None]], **settings: Any) -> None:
    """Run a scenario against the double in a process; none may be left."""

    async def run() -> None:
        listener = Listener()
        worker = await WorkerProcess.start(WorkerSettings(**settings), bundle, on_event=listener, command=DOUBLE)
        try:
            await scenario(worker, listener)
        finally:
            await worker.close()
            assert not psutil.pid_exists(worker.pid)

    asyncio.run(run())


def hello(number: int, prompt: str = "count 999", **fields: Any) -> Generation:
    return Generation(number, "anna", prompt=prompt, **{"max_tokens": 5, **fields})


def test_a_worker_answers_and_closes(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        assert worker.facts.engine == "fake"
        assert worker.peak_rss_bytes > 1 << 20
        worker.admit(hello(1))
        worker.admit(hello(2, max_tokens=9))
        await listener.ended(1, 2)
        assert listener.outcomes[1].reason == "length"
        assert len(listener.outcomes[2].tokens) == 9
        assert (await worker.score("abc", "def")).finite
        await worker.close()
        assert await closed(worker) == "closed"
        worker.admit(hello(3))
        worker.cancel(3)
        with pytest.raises(EngineFailed, match="closed"):
            await worker.score("a", "b")

    with_worker(bundle, scenario)


def test_cancel_and_update_reach_a_running_request(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        worker.admit(hello(1, "hold 500", max_tokens=500))
        worker.admit(hello(2, "hold 500", max_tokens=500))
        await listener.until(lambda: {1, 2} <= listener.outcomes.keys())
        worker.cancel(1)
        worker.update(2, {"max_tokens": 1})
        await listener.ended(1, 2)
        assert listener.outcomes[1].reason == "cancelled"
        assert listener.outcomes[2].reason == "length"

    with_worker(bundle, scenario)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("crash", "killed by SIGSEGV"),
        ("raise", "the runtime gave up"),
        ("surprise", "ZeroDivisionError: one over none"),
        ("exit", "exit status 3: these are my last words"),
        ("garbage", "the worker sent an invalid reply"),
        ("environment", f"telemetry 1 nice {min(19, os.nice(0) + 7)}"),
    ],
)
def test_a_worker_that_ends_says_why(bundle: Path, prompt: str, why: str) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        worker.admit(hello(1, prompt))
        assert (await closed(worker)).startswith(why)
        assert not listener.has_ended(1)

    with_worker(bundle, scenario, nice=7)


def test_a_killed_worker_fails_whoever_waits_for_a_score(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        with pytest.raises(EngineFailed, match="SIGKILL"):
            await worker.score("killed", "text")
        assert await closed(worker) == "killed by SIGKILL"

    with_worker(bundle, scenario)


@pytest.mark.parametrize(
    ("status", "starved", "text"),
    [
        (-9, True, "killed by SIGKILL, which the kernel does where memory runs out: the last words"),
        (-9, False, "killed by SIGKILL: the last words"),
        (-11, True, "killed by SIGSEGV: the last words"),
        (
            None,
            True,
            "its connection ended, which the kernel does where memory runs out; the journal of edge-agent-worker says "
            "why: the last words",
        ),
    ],
)
def test_an_end_for_want_of_memory_is_told_from_others(status: int | None, starved: bool, text: str) -> None:
    tail = StderrTail()
    tail._kept = b"the last words\n"
    assert tail.describe_exit(status, starved=starved) == text


def test_kill_ends_it_in_the_middle_of_an_answer(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        worker.admit(hello(1, "hold 500", max_tokens=500))
        await listener.until(lambda: 1 in listener.outcomes)
        worker.kill()
        assert await closed(worker) == "killed by SIGKILL"

    with_worker(bundle, scenario)


def test_a_stopped_worker_counts_as_hung(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        os.kill(worker.pid, signal.SIGSTOP)
        assert await closed(worker) == "silent for 0.5 s"

    with_worker(bundle, scenario, stall_seconds=0.5)


def test_no_silence_is_counted_while_the_agent_itself_stands_still(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was frozen, or gave the agent no core, for an hour: nobody knows yet whether the worker hangs."""
    passed = time.monotonic

    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        for number in (1, 2):  # the first ping is answered by then
            worker.admit(hello(number))
            await listener.ended(number)
        os.kill(worker.pid, signal.SIGSTOP)
        monkeypatch.setattr(time, "monotonic", lambda: passed() + 3600)
        for _ in range(20):
            await asyncio.sleep(0)
        os.kill(worker.pid, signal.SIGCONT)
        worker.admit(hello(3))
        await listener.ended(3)
        assert worker.silence < 1

    with_worker(bundle, scenario, stall_seconds=30)


def test_a_worker_that_hangs_in_its_engine_is_ended(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        worker.admit(hello(1, "hang"))
        assert await closed(worker) == "silent for 0.5 s"

    with_worker(bundle, scenario, stall_seconds=0.5)


def test_a_prompt_that_is_read_in_one_piece_may_take_as_long_as_its_slices(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        # Half as much again as is allowed otherwise.
        worker.admit(hello(1, f"read {20 * READ_SLICE} 3.0"))
        await listener.ended(1)
        worker.admit(hello(2, "hang"))
        assert await closed(worker) == "silent for 2 s", "it is over once that is read"

    with_worker(bundle, scenario, stall_seconds=2.0)


def test_reading_for_ever_is_a_hang(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        worker.admit(hello(1, f"read {2 * READ_SLICE + 1} 3600"))
        assert await closed(worker) == "silent for 6 s"

    with_worker(bundle, scenario, stall_seconds=2.0)


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 30), (1, 30), (128, 30), (129, 60), (2000, 480), (10**9, 3600)])
def test_a_slice_more_is_a_silence_more_but_no_claim_is_believed_for_ever(tokens: int, seconds: float) -> None:
    assert allowed_silence(30.0, tokens) == seconds


def test_silence_is_allowed_up_to_the_limit(bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        for number in range(1, 4):
            os.kill(worker.pid, signal.SIGSTOP)
            os.kill(worker.pid, signal.SIGCONT)
            worker.admit(hello(number))
            await listener.ended(number)
        assert sorted(listener.outcomes) == [1, 2, 3]
        assert all(outcome.text for outcome in listener.outcomes.values())

    with_worker(bundle, scenario, stall_seconds=30)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("refused", "there is no model in there"),
        ("dies", "killed by SIGKILL"),
        ("slow", r"not loaded within 0\.5 s"),
    ],
)
def test_a_worker_that_does_not_load_is_an_error(tmp_path: Path, name: str, why: str) -> None:
    before = set(psutil.Process().children())

    async def run() -> None:
        settings = WorkerSettings(load_seconds=0.5 if name == "slow" else PATIENCE)
        with pytest.raises(EngineFailed, match=why):
            await WorkerProcess.start(settings, tmp_path / name, on_event=print, command=DOUBLE)

    asyncio.run(run())
    assert set(psutil.Process().children()) <= before


def test_a_load_that_no_longer_advances_is_ended_and_its_last_stage_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(LoadTimeout):
        def advance(self, stage: str, *, last: bool = False) -> None:
            super().advance(stage, last=last)
            self.bound.reschedule(0.0)  # as if the time were over now

    monkeypatch.setattr("agent.worker.supervisor.LoadTimeout", Impatient)

    async def run() -> None:
        settings = WorkerSettings(load_seconds=PATIENCE)
        with pytest.raises(EngineFailed, match=f"not loaded, and silent for {PATIENCE:g} s after: self-test"):
            await WorkerProcess.start(settings, tmp_path / "stalls", on_event=print, command=DOUBLE)

    asyncio.run(run())


def test_a_load_that_advances_has_its_time_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        clock = asyncio.get_running_loop().time
        waiting = LoadTimeout(300.0)
        async with waiting.bound:
            asked = clock()
            waiting.advance("self-test")
            left = waiting.bound.when()
            assert left is not None
            assert asked + 300 <= left <= clock() + 300
            waiting.advance("reading the weights", last=True)
            left = waiting.bound.when()
            assert left is not None
            assert asked + 11 * 300 <= left <= clock() + protocol.MAX_LOADS * 300
        monkeypatch.setattr(protocol, "MAX_LOADS", 0.5)
        waiting = LoadTimeout(300.0)
        end = clock() + 150
        async with waiting.bound:
            waiting.advance("self-test")
            left = waiting.bound.when()
            assert left is not None
            assert left <= end
        monkeypatch.setattr(waiting, "_last", 0.0)
        assert waiting.reason == "not loaded within 150 s"

    asyncio.run(run())


def test_a_program_that_is_not_there_is_an_error(bundle: Path) -> None:
    async def run() -> None:
        with pytest.raises(EngineFailed, match="cannot be started"):
            await WorkerProcess.start(WorkerSettings(), bundle, on_event=print, command=["/no/such/program"])

    asyncio.run(run())


AGENT = """
import asyncio, sys
from pathlib import Path
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess

async def main():
    worker = await WorkerProcess.start(WorkerSettings(), Path(sys.argv[1]), on_event=print, command=sys.argv[2:])
    print(worker.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_no_worker_outlives_a_killed_agent(bundle: Path) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(bundle), *DOUBLE], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert agent.stdout is not None
        worker = psutil.Process(int(agent.stdout.readline()))
        agent.kill()
        worker.wait(PATIENCE)
        assert not worker.is_running()
    finally:
        agent.kill()
        agent.wait()
        agent.stdout.close()


def test_start_is_a_worker_starter() -> None:
    starter: WorkerStarter = WorkerProcess.start
    assert callable(starter)


def test_a_start_that_is_cancelled_just_as_the_model_has_loaded_is_cancelled(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``asyncio.wait_for`` forgot it then, and an agent that was told to stop went on for ever."""
    started: list[WorkerProcess] = []
    opening = WorkerProcess._open

    async def cancelled_when_loaded(self: WorkerProcess, *arguments: Any) -> None:
        started.append(self)
        task = asyncio.current_task()
        assert task is not None
        opened = asyncio.ensure_future(opening(self, *arguments))
        # In the turn of the loop in which the start itself hears that it has loaded, before it is run again.
        self._loaded.add_done_callback(lambda _: asyncio.get_running_loop().call_soon(opened.cancel))
        self._loaded.add_done_callback(lambda _: opened.cancel())
        await opened

    monkeypatch.setattr(WorkerProcess, "_open", cancelled_when_loaded)

    async def run() -> None:
        with pytest.raises(asyncio.CancelledError):
            await WorkerProcess.start(WorkerSettings(), bundle, on_event=Listener(), command=DOUBLE)
        await closed(started[0])
        assert not psutil.pid_exists(started[0].pid)

    asyncio.run(run())
