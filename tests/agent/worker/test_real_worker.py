"""The product's own worker with the real model."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.engine.interface import Generation
from agent.host.huge_pages import page_size
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import LoadTimeout, WorkerProcess
from contract.errors import EngineFailed
from tests.agent.waiting import until
from tests.agent.worker.listening import PATIENCE, Listener, closed


def with_worker(bundle: Path, scenario: Callable[[WorkerProcess, Listener], Awaitable[None]], **fields: Any) -> None:
    async def run() -> None:
        listener = Listener()
        settings = WorkerSettings(load_seconds=PATIENCE, **fields)
        worker = await WorkerProcess.start(settings, bundle, on_event=listener)
        try:
            await scenario(worker, listener)
        finally:
            await worker.close()

    asyncio.run(run())


def question(number: int, **fields: Any) -> Generation:
    wanted: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    return Generation(number, "anna", **(wanted | {"max_tokens": 20} | fields))


def bytes_asked_for(pid: int) -> int:
    """Of a process's own memory: what it wants to have in huge pages, whether or not the kernel has any."""
    stretches = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text())
    asked = "".join(each for each in stretches if re.search(r"(?m)^VmFlags:.*\bhg\b", each))
    return 1024 * sum(map(int, re.findall(r"(?m)^Rss:\s+(\d+) kB$", asked)))


@pytest.mark.parametrize("engine", ["batched", "genai"])
def test_the_model_answers_several_at_once(short_bundle: Path, engine: str) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        worker.admit(question(1))
        worker.admit(question(2, temperature=0.7, seed=5))
        worker.admit(question(3, num_beams=2))
        worker.admit(question(4, adapter="none"))
        await listener.ended(1, 2, 3, 4)
        assert "Paris" in listener.outcomes[1].text
        if engine == "genai":
            assert "Paris" in listener.outcomes[3].text
        else:
            assert listener.outcomes[3].refused_field == "num_beams"
        assert listener.outcomes[4].refused_field == "adapter"
        assert (await worker.score("The capital of France is", " Paris.")).finite
        assert worker.peak_rss_bytes > 100 << 20
        assert "no_new_privs" in worker.isolation
        assert worker.facts.engine == engine
        if page_size():  # its largest weights: smaller ones share the heap, which may have gaps; shut in as it is
            await until(lambda: bytes_asked_for(worker.pid) > 8 << 20)

    with_worker(short_bundle, scenario, engine=engine)


@pytest.mark.parametrize("engine", ["batched", "genai"])
def test_who_cannot_speak_while_it_loads_says_so_before(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """The runtime's own models are opened without another thread being let run: who waits must not take it for dead."""
    heard: list[tuple[str, bool]] = []

    class Heard(LoadTimeout):
        def advance(self, stage: str, *, last: bool = False) -> None:
            heard.append((stage, last))
            super().advance(stage, last=last)

    monkeypatch.setattr("agent.worker.supervisor.LoadTimeout", Heard)

    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        assert worker.facts.engine == engine

    with_worker(tiny_bundle, scenario, engine=engine)
    assert (("reading the weights", True) in heard) == (engine == "genai")


def test_as_many_run_at_once_as_the_operator_says(tiny_bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        assert worker.facts.slots == 3

    with_worker(tiny_bundle, scenario, threads=1, slots=3)


def test_killed_in_the_middle_of_an_answer(short_bundle: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        worker.admit(question(1, prompt="Once upon a time", messages=None, max_tokens=400))
        await listener.until(lambda: 1 in listener.outcomes)
        worker.kill()
        assert await closed(worker) == "killed by SIGKILL"
        assert not listener.has_ended(1)

    with_worker(short_bundle, scenario)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        raise AssertionError("it loaded")

    with pytest.raises(EngineFailed, match="cannot be read"):
        with_worker(tmp_path, scenario)


def test_a_graph_that_is_not_one_is_refused(short_bundle: Path, tmp_path: Path) -> None:
    for file in short_bundle.iterdir():
        if file.name != "model.onnx":
            shutil.copyfile(file, tmp_path / file.name)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0agarbage")

    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        raise AssertionError("it loaded")

    with pytest.raises(EngineFailed, match="the model cannot be loaded"):
        with_worker(tmp_path, scenario)
