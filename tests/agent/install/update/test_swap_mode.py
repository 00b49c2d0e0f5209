"""Whether two models run side by side is decided by the memory that is there, measured just before the swap."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import UNSET

from agent.host import memory
from agent.install import reconciler as coordinating
from agent.install.ports import Footprint
from agent.install.settings import InstallSettings
from agent.worker.settings import WorkerSettings
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.errors import StoreBroken
from contract.reasons import Reason
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired
from tests.agent.install.test_reconciler import active, failed, stage_for
from tests.soak.scene import Scene

NEED = 300 << 20
RESERVE = 128 << 20


def say_available(monkeypatch: pytest.MonkeyPatch, place: Path, kilobytes: int) -> None:
    """A device with so much memory left, in no control group."""
    said = place / "meminfo"
    said.write_text(f"MemTotal:       4000000 kB\nMemFree:          10000 kB\nMemAvailable:   {kilobytes} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", said)
    monkeypatch.setattr(memory, "_CGROUP_ROOT", place / "none")


@pytest.mark.parametrize(("less", "mode"), [(0, "overlap"), (1, "drain")])
async def test_what_the_canary_took_and_the_reserve_must_fit(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, less: int, mode: str
) -> None:
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()})
    stage = stage_for(market, device, swap="overlap", reserve_bytes=RESERVE)
    stage.workers.peak = NEED
    say_available(monkeypatch, tmp_path, (NEED + RESERVE) // 1024 - less)
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0"):
            reconciler.set_desired(desired(version))
            await stage.settled(f"r{version}")
        assert [swap[0] for swap in stage.serving.swaps] == ["1.0.0", "1.1.0"]
        assert stage.serving.swaps[-1][1] == mode


class Tight(NamedTuple):
    """A device that serves 1.0.0 and has no memory for a second model, whatever the canary would find."""

    market: Market
    stage: Stage


@pytest.fixture
def tight(market: Market, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tight:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        market.publish(version, {"README.md": version.encode()})
    told = parse_manifest((market.base / MANIFEST_FILE).read_bytes()).budget.peak_rss_bytes
    say_available(monkeypatch, tmp_path, (told + RESERVE) // 1024 - 1)
    return Tight(market, stage_for(market, device, swap="overlap", reserve_bytes=RESERVE))


async def test_what_serves_makes_room_for_the_canary_of_what_would_not_fit_beside_it(tight: Tight) -> None:
    stage = tight.stage
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0"):
            reconciler.set_desired(desired(version))
            await stage.settled(f"r{version}")
    assert stage.serving.moves == ["swap", "aside", "swap"]
    assert stage.serving.swaps == [("1.0.0", "drain"), ("1.1.0", "drain")]
    assert stage.workers.niceness == [19, 0], "requests wait for it"


async def test_how_it_will_be_swapped_is_said_before_any_of_it_travels(tight: Tight) -> None:
    stage = tight.stage
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0"):
            reconciler.set_desired(desired(version))
            await stage.settled(f"r{version}")
    assert all(each.swap is UNSET for each in stage.reported if each.revision == "r1.0.0"), "nothing serves yet"
    told = {each.phase: each.swap for each in stage.reported if each.revision == "r1.1.0"}
    for phase in ("CHECK", "CANARY"):
        swap = told[phase]
        assert swap is not UNSET
        assert swap.mode == "aside"
        assert swap.pause_seconds == InstallSettings().canary_seconds + WorkerSettings().load_seconds
        assert "beside the one that serves" in swap.why
    assert told["IDLE"] is UNSET


@pytest.mark.parametrize("swap", ["overlap", "drain"])
@pytest.mark.parametrize("both", [True, False])
async def test_it_follows_from_what_both_manifests_ask_for(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, swap: Any, both: bool
) -> None:
    """A device with 3.8 GiB: two models that ask for 2.3 GB each do not fit, though it is free now."""
    requires = parse_manifest((market.base / MANIFEST_FILE).read_bytes()).requires
    asked = msgspec.structs.replace(requires, min_ram_bytes=2000 * 10**6 if both else 2300 * 10**6)
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()}, requires=asked)
    say_available(monkeypatch, tmp_path, 3_900_000)
    stage = stage_for(market, device, swap=swap, reserve_bytes=RESERVE)
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0"):
            reconciler.set_desired(desired(version))
            await stage.settled(f"r{version}")
    [told] = {each.swap for each in stage.reported if each.revision == "r1.1.0" and each.phase == "FETCH"}
    assert told is not UNSET
    assert told.mode == (swap if both else "aside")
    assert (told.why == "two models need 4.1 GiB of memory, and this device has 3.8 GiB") is not both
    assert (told.pause_seconds == 0) is (told.mode == "overlap")
    assert stage.serving.moves == (["swap", "swap"] if both else ["swap", "aside", "swap"])


async def test_weights_that_are_mapped_leave_no_room_though_the_kernel_calls_them_available(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        market.publish(version, {"README.md": version.encode()})
    told = parse_manifest((market.base / MANIFEST_FILE).read_bytes()).budget.peak_rss_bytes
    say_available(monkeypatch, tmp_path, (told + RESERVE + (64 << 20)) // 1024)
    stage = stage_for(market, device, swap="overlap", reserve_bytes=RESERVE)
    async with stage.agent() as reconciler:
        for version, mapped in (("1.0.0", 0), ("1.1.0", 63 << 20), ("1.2.0", 65 << 20)):
            stage.serving.footprint = Footprint(anonymous_bytes=mapped and 5 << 20, mapped_bytes=mapped)
            reconciler.set_desired(desired(version))
            await stage.settled(f"r{version}")
    assert stage.serving.swaps == [("1.0.0", "drain"), ("1.1.0", "overlap"), ("1.2.0", "drain")]
    assert stage.serving.moves == ["swap", "swap", "aside", "swap"]
    # What it has for itself is there for the one that takes its place, unless it has left already.
    assert stage.workers.leaving == [0, 5 << 20, 0]


async def test_it_comes_back_when_the_candidate_fails_its_canary(tight: Tight) -> None:
    stage = tight.stage
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.settled("r1.0.0")
        stage.workers.drift = 9.0
        reconciler.set_desired(desired("1.1.0"))
        reported = await stage.until(failed(Reason.CANARY_DRIFT))
    assert stage.serving.moves == ["swap", "aside", "back"]
    assert reported.queue_pause_ms == 34.5


async def test_it_comes_back_when_another_bundle_is_wished_for_meanwhile(tight: Tight) -> None:
    stage = tight.stage
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.settled("r1.0.0")
        stage.workers.hang, stage.workers.begun = True, asyncio.Event()
        reconciler.set_desired(desired("1.1.0"))
        await asyncio.wait_for(stage.workers.begun.wait(), 120)
        stage.workers.hang = False
        reconciler.set_desired(desired("1.2.0"))
        await stage.until(active("1.2.0"))
    assert stage.serving.moves == ["swap", "aside", "back", "aside", "swap"]


async def test_it_comes_back_when_the_next_step_cannot_be_recorded(
    tight: Tight, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tight.stage
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.settled("r1.0.0")
        real, refused = stage.state.enter, False

        def enter(phase: str, *others: Any) -> None:
            nonlocal refused
            if phase == "SWITCH" and not refused:
                refused = True
                raise StoreBroken("the disk gave an error")
            real(phase, *others)

        monkeypatch.setattr(stage.state, "enter", enter)
        monkeypatch.setattr(coordinating, "RESTORE_RETRY_SECONDS", 0.05)
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(active("1.1.0"))
    assert stage.serving.moves[:4] == ["swap", "aside", "back", "aside"]
    assert stage.serving.moves[-1] == "swap"


@pytest.fixture
def scene(tiny_bundle: Path, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "scene", tiny_bundle)
    yield made
    made.close()
    assert made.wrong_answers() == []


@pytest.mark.broker
@pytest.mark.timeout(600)
def test_real_workers_take_turns_where_both_do_not_fit(scene: Scene) -> None:
    """A reserve as large as the machine leaves no room for two: not for the canary, either."""
    line = "[install]\n"
    for reserve, mode in ((0, "overlap"), (memory.total_memory(), "drain")):
        scene.configure(line, f"[install]\nreserve_bytes = {reserve}\n")
        line = f"[install]\nreserve_bytes = {reserve}\n"
        version = scene.world.publish()
        most = 0

        def arrived(version: str = version) -> bool:
            nonlocal most
            most = max(most, len(scene.world.workers()))
            return scene.active == version

        scene.asker.desire(version)
        scene.until(arrived)
        assert most == (2 if mode == "overlap" else 1)
        said = scene.asker.last_swap
        assert (said["bundle"], said["mode"]) == (f"tiny@{version}", mode)
        assert mode == "drain" or said["queue_pause_ms"] == 0
    # One that fails makes it wait for nothing, and it answers again.
    weights = (scene.world.market.base / "model.onnx.data").read_bytes()
    scene.world.market.publish("3.0.0", {"model.onnx.data": b"\xff" * len(weights)})
    before = scene.answered()
    scene.asker.desire("3.0.0")
    scene.until(lambda: (scene.asker.reported.get("error") or {}).get("reason") == Reason.CANARY_NOT_FINITE)
    assert scene.asker.reported["queue_pause_ms"] > 0
    scene.until(lambda: scene.answered() > before)
    assert scene.active == version
