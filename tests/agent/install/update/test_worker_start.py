"""Workers with and without prepacked weights: real processes, real weights, whatever state those are in."""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from pathlib import Path

import msgspec
import pytest

from agent.engine.interface import FinishEvent, Generation, StepEvent
from agent.install.ports import SealedBundle
from agent.install.prepack import DiskLimits, WeightPrepacker
from agent.install.update.worker_start import fingerprint_tree, load_bundle
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess
from contract.errors import EngineFailed
from contract.system.durable import Disk
from tests.agent.install.market import Device, Market


async def derive(market: Market, device: Device) -> SealedBundle:
    market.publish("1.0.0")
    sealed = device.install(market.job(device.directory.root, "1.0.0"))
    derived = await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(sealed)
    assert derived is not None
    return msgspec.structs.replace(sealed, derived=derived, derived_fingerprint=fingerprint_tree(derived))


async def load(bundle: SealedBundle) -> tuple[WorkerProcess, asyncio.Queue[StepEvent]]:
    events: asyncio.Queue[StepEvent] = asyncio.Queue()
    settings = WorkerSettings(engine="batched", threads=1, max_bytes=8 << 20)
    worker = await load_bundle(bundle, partial(WorkerProcess.start, settings, on_event=events.put_nowait))
    assert isinstance(worker, WorkerProcess)
    return worker, events


async def answer(bundle: SealedBundle) -> str:
    worker, events = await load(bundle)
    try:
        worker.admit(Generation(1, "anna", prompt="The capital of France", max_tokens=12, temperature=0.0))
        text = ""
        while True:
            event = await asyncio.wait_for(events.get(), 120)
            text += getattr(event, "text", "")
            if isinstance(event, FinishEvent):
                return text
    finally:
        await worker.close()


def mapped(pid: int, place: Path) -> dict[str, int]:
    """KiB of the files below ``place`` that a process has mapped, by kind."""
    sums: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(place) in line
        elif inside and line.endswith(" kB"):
            kind, value, _ = line.split()
            sums[kind] = sums.get(kind, 0) + int(value)
    return sums


async def test_two_workers_share_the_pages_of_what_they_map(market: Market, device: Device) -> None:
    bundle = await derive(market, device)
    assert bundle.derived is not None
    first, _ = await load(bundle)
    second, _ = await load(bundle)
    try:
        both = [mapped(worker.pid, bundle.derived) for worker in (first, second)]
    finally:
        await first.close()
        await second.close()
    for found in both:
        assert found["Rss:"] > 100, "the weights are mapped"
        assert found["Pss:"] < 0.75 * found["Rss:"], "and counted to both"
        assert found["Private_Dirty:"] == found["Anonymous:"] == 0, "and copied by none"


@pytest.mark.parametrize("how", ["written", "replaced", "gone"])
async def test_what_was_touched_after_its_verification_is_not_used(
    market: Market, device: Device, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = await derive(market, device)
    assert bundle.derived is not None
    expected = await answer(bundle)
    bundle.derived.chmod(0o755)
    weights = bundle.derived / "model.onnx.data"
    match how:
        case "written":
            weights.chmod(0o644)
            with weights.open("r+b") as file:
                file.write(b"\xff" * 1000)
        case "replaced":
            other = weights.with_name("other")
            other.write_bytes(bytes(weights.stat().st_size))
            other.replace(weights)
        case "gone":
            weights.unlink()
    with caplog.at_level(logging.WARNING):
        assert await answer(bundle) == expected
    assert "were touched and are not used" in caplog.text


async def test_what_does_not_load_is_left_out(market: Market, device: Device, caplog: pytest.LogCaptureFixture) -> None:
    bundle = await derive(market, device)
    expected = await answer(bundle)
    assert bundle.derived is not None
    bundle.derived.chmod(0o755)
    graph = bundle.derived / "model.onnx"
    graph.chmod(0o644)
    graph.write_bytes(b"\x08\x07junk")
    bundle = msgspec.structs.replace(bundle, derived_fingerprint=fingerprint_tree(bundle.derived))
    with caplog.at_level(logging.WARNING):
        assert await answer(bundle) == expected
    assert "does not load with its prepacked weights" in caplog.text


async def test_a_bundle_that_does_not_load_either_way_says_why(market: Market, device: Device) -> None:
    bundle = await derive(market, device)
    bundle.directory.chmod(0o755)
    config = bundle.directory / "genai_config.json"
    config.chmod(0o644)
    config.write_bytes(b"{}")
    with pytest.raises(EngineFailed):
        await load(bundle)
