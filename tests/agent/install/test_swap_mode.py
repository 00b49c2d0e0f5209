"""Whether two models run side by side is decided by the memory that is there, measured just before the swap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import host
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import desired
from tests.agent.install.test_coordinator import stage_for
from tests.soak.scene import Scene

NEED = 300 << 20
RESERVE = 128 << 20


def say_available(monkeypatch: pytest.MonkeyPatch, place: Path, kilobytes: int) -> None:
    """A device with so much memory left, in no control group."""
    said = place / "meminfo"
    said.write_text(f"MemTotal:       4000000 kB\nMemFree:          10000 kB\nMemAvailable:   {kilobytes} kB\n")
    monkeypatch.setattr(host, "_MEMINFO", said)
    monkeypatch.setattr(host, "_CGROUP_ROOT", place / "none")


@pytest.mark.parametrize(("less", "mode"), [(0, "overlap"), (1, "drain")])
async def test_what_the_canary_took_and_the_reserve_must_fit(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, less: int, mode: str
) -> None:
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()})
    stage = stage_for(market, device, swap="overlap", reserve_bytes=RESERVE)
    stage.workers.peak = NEED
    say_available(monkeypatch, tmp_path, (NEED + RESERVE) // 1024 - less)
    async with stage.agent() as coordinator:
        for version in ("1.0.0", "1.1.0"):
            coordinator.desire(desired(version))
            await stage.settled(f"r{version}")
        assert [swap[0] for swap in stage.serving.swaps] == ["1.0.0", "1.1.0"]
        assert stage.serving.swaps[-1][1] == mode


@pytest.fixture
def scene(tiny_bundle: Path, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "scene", tiny_bundle)
    yield made
    made.close()
    assert made.wrong_answers() == []


@pytest.mark.broker
@pytest.mark.timeout(200)
def test_real_workers_take_turns_where_both_do_not_fit(scene: Scene) -> None:
    """A reserve as large as the machine leaves no room for two."""
    line = "[install]\n"
    for reserve, mode in ((0, "overlap"), (host.total_memory(), "drain")):
        scene.configure(line, f"[install]\nreserve_bytes = {reserve}\n")
        line = f"[install]\nreserve_bytes = {reserve}\n"
        version = scene.world.publish()
        scene.asker.desire(version)
        scene.until(lambda: scene.active == version)  # noqa: B023 waited for here
        said = scene.asker.last_swap
        assert (said["bundle"], said["mode"]) == (f"tiny@{version}", mode)
        assert mode == "drain" or said["hold_ms"] == 0
