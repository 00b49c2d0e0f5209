"""A strained box answers fewer requests at once, says so, and recovers: real sampler, throttle, queue, broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.host.throttling import CALM_SECONDS, STEP_SECONDS
from agent.telemetry.llm import LlmMeter
from agent.telemetry.loop import TelemetryLoop
from agent.telemetry.settings import TelemetrySettings
from agent.telemetry.system import SystemSampler
from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.telemetry.trees import BOARD, plant
from tests.agent.worker.double import FakeWorkers
from tests.e2e.raw_client import RawClient

pytestmark = pytest.mark.broker

ZONE = "sys/class/thermal/thermal_zone0/temp"
COOLING = "sys/class/thermal/cooling_device0/cur_state"
PLACES = 8


class Box:
    """A board whose files the test writes, and the agent's vitals on it."""

    def __init__(self, device: Device, root: Path) -> None:
        self.root = plant(root, BOARD)
        self.device = device
        self.now = 0.0
        self.limits: list[dict[str, Any]] = []
        sampler = SystemSampler(root, proc=root / "proc", sys=root / "sys")
        self.vitals = TelemetryLoop(TelemetrySettings(), sampler, LlmMeter(0.0), device.serving)
        self.vitals.on_limit.add(self._tell)

    def _tell(self, detail: dict[str, Any]) -> None:
        self.limits.append(detail)
        self.device.gateway.event("throttle", detail)

    def at(self, degrees: int, *, seconds: float, slowed: bool = False) -> None:
        """The board shows this for a while: a sample at the end of it."""
        plant(self.root, {ZONE: str(degrees * 1000), COOLING: "2" if slowed else "0"})
        self.now += seconds
        sample = self.vitals._sampler.sample({})
        self.device.call(lambda: self.vitals.react(sample, self.now))


def test_heat_halves_what_runs_at_once_and_calm_gives_it_back(
    make_device: MakeDevice,
    client: RawClient,
    tmp_path: Path,
) -> None:
    device = make_device(workers=FakeWorkers(PLACES), client_queue_limit=64).start(sealed())
    box = Box(device, tmp_path / "board")
    box.at(50, seconds=10)
    assert not box.limits
    for expected in (4, 2, 1):
        box.at(82, seconds=STEP_SECONDS, slowed=True)
        assert box.limits[-1]["active_limit"] == expected
    assert box.vitals.limit.reasons == ("throttled_temperature",)
    for number in range(6):
        client.ask(f"q{number}", "wait")
    # Those that the ledger has not judged yet count as queued, too.
    device.until(lambda: (device.serving.queued, device.serving.active) == (5, 1))
    event = client.next_device_message("event/throttle")
    assert event["detail"]["reasons"] == ["throttled_temperature"]
    assert event["detail"]["temperatures"] == {"cpu-thermal.0": 82.0}
    # It cools down: one step for each calm stretch, and all that waited gets its place.
    box.at(60, seconds=1)
    for _ in range(3):
        box.at(60, seconds=CALM_SECONDS)
    assert [limit["level"] for limit in box.limits] == [1, 2, 3, 2, 1, 0]
    assert box.limits[-1]["active_limit"] is None
    device.until(lambda: device.serving.active == 6)
    device.call(device.workers.current.let_go)
    for number in range(6):
        client.wait_answer(f"q{number}")


def test_a_box_without_memory_is_throttled_and_one_without_sensors_never(
    make_device: MakeDevice,
    tmp_path: Path,
) -> None:
    device = make_device(workers=FakeWorkers(PLACES)).start(sealed())
    box = Box(device, tmp_path / "board")
    plant(box.root, {"proc/pressure/memory": "some avg10=60.0\nfull avg10=12.5\n"})
    box.at(40, seconds=10)
    assert json.dumps(box.limits[-1]["reasons"]) == '["throttled_memory"]'
    bare = Box(device, tmp_path / "bare")
    for name in BOARD:
        (bare.root / name).unlink()
    sample = bare.vitals._sampler.sample({})
    for second in range(20):
        device.call(lambda second=second: bare.vitals.react(sample, 10.0 * second))  # type: ignore[misc]
    assert not bare.limits
