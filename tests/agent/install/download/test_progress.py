"""How far a download is: counted where the bytes are, said on ``reported``; and cut off from a real nginx."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from agent.install.download import pipeline as download_pipeline
from agent.install.download.progress import ProgressMeter
from agent.install.process.installer import run_job
from agent.install.process.messages import Line, Progressed
from agent.install.reporter import PROGRESS_INTERVAL_SECONDS, Reporter
from agent.install.update.state_machine import State
from contract.errors import SourceUnavailable
from contract.mqtt.reports import Probation, Reported
from contract.system.durable import Disk
from tests.agent.install.market import Device, Market
from tests.contract.source.test_nginx import NGINX
from tests.soak.world import Web


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_is_told_in_bytes_and_seconds() -> None:
    lines: list[Progressed] = []
    clock = Clock()
    meter = ProgressMeter(1000, lines.append, clock)
    meter.found(100)
    meter.reused(300)
    assert lines == [Progressed(100, 1000, 0, 0)], "not more often than every quarter second"
    clock.now = 10.0
    meter.fetched(100)
    assert lines[-1] == Progressed(500, 1000, 300, 100), "a rate over no time is none"
    clock.now = 12.0
    meter.fetched(100, again=50)
    assert lines[-1] == Progressed(550, 1000, 300, 200, seconds_left=4.5), "100 a second, 450 to go"
    meter.fetched(450)
    assert lines[-1].done == 550
    meter.finish()
    assert (lines[-1].done, lines[-1].seconds_left) == (1000, 0.0)


def test_what_has_come_and_waits_to_be_written_is_not_waited_for() -> None:
    """Four ranges at a time: the last of them are all but here when the first one is."""
    lines: list[Progressed] = []
    clock = Clock()
    meter = ProgressMeter(1000, lines.append, clock)
    for second in range(1, 5):
        clock.now = float(second)
        for _ in range(4):
            meter.arrived(25)
        meter.fetched(25)
    # 400 came in three seconds after the first hundred, 100 are written; 600 are to come.
    assert lines[-1] == Progressed(100, 1000, 0, 100, seconds_left=4.5)


def test_what_an_earlier_attempt_left_counts_as_it_is_found(market: Market, device: Device) -> None:
    manifest = market.publish("1.0.0", {"extra.bin": os.urandom(5 << 20), "more.bin": os.urandom(1000)})
    away = market.object(manifest, "more.bin").rename(market.root / "away")
    with pytest.raises(SourceUnavailable):
        device.install(market.job(device.directory.root, "1.0.0"))
    before = [line for line in device.lines if isinstance(line, Progressed)][-1]
    away.rename(market.object(manifest, "more.bin"))
    found: list[int] = []
    real = ProgressMeter.found

    class Watched(ProgressMeter):
        def found(self, count: int) -> None:
            found.append(count)
            real(self, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download_pipeline, "ProgressMeter", Watched)
        device.install(market.job(device.directory.root, "1.0.0"))
    assert max(found) <= 1 << 20, "a chunk at a time"
    assert sum(found) == before.done > 5 << 20


def test_it_is_on_reported_once_a_second_until_the_bundle_is_there(device: Device) -> None:
    device.directory.database.parent.mkdir(exist_ok=True)
    told: list[Reported] = []
    clock = Clock()
    reporter = Reporter(device.state(), told.append, lambda _kind, _detail: None, clock)
    reporter.begin("r7")
    reporter.phase(State.FETCH)
    for second in range(3):
        clock.now = second * PROGRESS_INTERVAL_SECONDS
        for part in range(4):
            reporter.progress(Progressed(100 * second + part, 1000, 50, 10, seconds_left=9.0 - second))
    said = [json.loads(msgspec.json.encode(each))["progress"] for each in told]
    assert said == [
        None,
        *({"done": 100 * second, "total": 1000, "reused": 50, "seconds_left": 9.0 - second} for second in range(3)),
    ]
    reporter.phase(State.IDLE)
    assert told[-1].progress is None


def test_how_far_probation_is_is_on_reported_once_a_second_until_it_is_over(device: Device) -> None:
    device.directory.database.parent.mkdir(exist_ok=True)
    reports: list[Reported] = []
    clock = Clock()
    reporter = Reporter(device.state(), reports.append, lambda _kind, _detail: None, clock)
    reporter.begin("r7")
    reporter.phase(State.PROBATION)
    for second in range(3):
        clock.now = second * PROGRESS_INTERVAL_SECONDS
        for part in range(4):
            reporter.probation(Probation(second + part / 4, 60.0, second, 5))
    assert [each.probation for each in reports] == [UNSET, *(Probation(second, 60.0, second, 5) for second in range(3))]
    reporter.phase(State.COMMIT)
    assert reports[-1].probation is UNSET


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_download_that_lost_its_nginx_half_way_goes_on_there(market: Market, device: Device, tmp_path: Path) -> None:
    market.publish("1.0.0", {"extra.bin": os.urandom(24 << 20)})
    web = Web(tmp_path / "web", market.location)
    job = market.job(device.directory.root, "1.0.0", sources=[web.location], parallel_fetches=2)
    slow = msgspec.structs.replace(job, bytes_per_second=12 << 20)
    lines: list[Progressed] = []

    def hear(line: Line) -> None:
        if isinstance(line, Progressed):
            lines.append(line)
            if line.fetched > 3 << 20:
                # Ranges of 4 MiB: what is on its way may still come, the next one cannot.
                web.kill()

    web.start()
    try:
        with pytest.raises(SourceUnavailable):
            run_job(slow, Disk(), hear)
        before = lines[-1]
        assert 3 << 20 < before.done < before.total
        web.start()
        device.install(job)
    finally:
        web.kill()
    after = [line for line in device.lines if isinstance(line, Progressed)][-1]
    assert (after.done, after.fetched) == (after.total, after.total - before.done), "nothing twice"
