"""The verdict on a bundle in probation."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import cast

import pytest

from agent.host.cpu_contention import CpuContention
from agent.install.ports import Serving, ServingCounters, Speed
from agent.install.settings import InstallSettings
from agent.install.update.probation import evaluate_probation, measured_speed
from agent.install.update.probation_watch import watch_probation
from agent.state.installation import Failure
from contract.mqtt.reports import Probation
from contract.reasons import Reason

SETTINGS = InstallSettings(probation_seconds=60, probation_requests=20, min_tokens_per_second=10)


def counters(finished: int = 0, failed: int = 0, crashes: int = 0, speed: float | None = None) -> ServingCounters:
    return ServingCounters(finished, failed, crashes, None if speed is None else at(speed), busy_seconds=9)


def at(speed: float, streams: int = 1) -> Speed:
    """``speed``: together."""
    return Speed(speed, speed / streams)


def test_it_holds_when_the_time_is_over_or_enough_was_answered() -> None:
    assert evaluate_probation(counters(), 59.9, SETTINGS, None) == "watching"
    assert evaluate_probation(counters(), 60, SETTINGS, None) == "held"
    assert evaluate_probation(counters(19), 1, SETTINGS, None) == "watching"
    assert evaluate_probation(counters(20), 1, SETTINGS, None) == "held"


@pytest.mark.parametrize(
    ("seen", "predecessor", "reason"),
    [
        (counters(20, crashes=1), None, Reason.PROBATION_CRASHED),
        (counters(20, failed=1), None, Reason.PROBATION_ERRORS),
        (counters(20, speed=9.9), None, Reason.PROBATION_TOO_SLOW),
        (counters(20, speed=49), at(100.0), Reason.PROBATION_TOO_SLOW),
    ],
)
def test_a_fault_weighs_more_than_enough_answers(
    seen: ServingCounters, predecessor: Speed | None, reason: Reason
) -> None:
    verdict = evaluate_probation(seen, 999, SETTINGS, predecessor)
    assert isinstance(verdict, Failure)
    assert verdict.reason is reason


def test_a_speed_over_too_few_answers_is_no_evidence() -> None:
    assert evaluate_probation(counters(2, speed=0.1), 1, SETTINGS, at(100.0)) == "watching"


def test_a_speed_over_a_moment_is_no_evidence() -> None:
    seen = ServingCounters(20, 0, 0, at(0.1), busy_seconds=0.4)
    assert evaluate_probation(seen, 1, SETTINGS, at(100.0)) == "held"
    assert measured_speed(seen) is None


def test_who_asks_for_more_or_less_at_once_than_before_does_not_send_it_back() -> None:
    more, fewer = ServingCounters(5, 0, 0, at(90.0, 8), 9), ServingCounters(5, 0, 0, at(30.0), 9)
    assert evaluate_probation(more, 1, SETTINGS, at(60.0)) == "watching", "a seventh for each, more together"
    assert evaluate_probation(fewer, 1, SETTINGS, at(90.0, 8)) == "watching", "a third together, more for each"


def test_the_operators_floor_is_for_all_answers_together() -> None:
    assert evaluate_probation(ServingCounters(5, 0, 0, at(10.0, 8), 9), 1, SETTINGS, None) == "watching"
    verdict = evaluate_probation(ServingCounters(5, 0, 0, at(9.9, 8), 9), 1, SETTINGS, None)
    assert isinstance(verdict, Failure)


def test_half_the_predecessors_speed_is_enough_by_default() -> None:
    assert evaluate_probation(counters(5, speed=50), 1, SETTINGS, at(100.0)) == "watching"


def test_a_sound_bundle_is_not_blamed_for_cores_that_other_work_took() -> None:
    assert evaluate_probation(counters(5, speed=20), 1, SETTINGS, at(100.0), contention=0.7) == "watching"
    assert evaluate_probation(counters(20, speed=11), 1, SETTINGS, at(100.0), contention=1.0) == "held"


def test_one_that_is_slower_than_all_the_waiting_explains_goes_back() -> None:
    for speed, contention in ((34, 0.3), (9.9, 1.0)):
        verdict = evaluate_probation(counters(5, speed=speed), 1, SETTINGS, at(100.0), contention=contention)
        assert isinstance(verdict, Failure)
        assert verdict.reason is Reason.PROBATION_TOO_SLOW


def kernel(proc: Path, *, waited_us: int | None, stolen: int) -> None:
    """What Linux says; None: it was built without PSI."""
    (proc / "stat").write_text(f"cpu  9 9 9 9 9 9 9 {stolen} 0 0\ncpu0 9 9 9 9 9 9 9 {stolen} 0 0\n")
    (proc / "pressure").mkdir(exist_ok=True)
    (proc / "pressure" / "cpu").unlink(missing_ok=True)
    if waited_us is not None:
        averages = "avg10=1.00 avg60=2.00 avg300=3.00"
        text = f"some {averages} total={waited_us}\nfull {averages} total=0\n"
        (proc / "pressure" / "cpu").write_text(text)


@pytest.mark.parametrize(
    ("before", "after", "stolen", "share"),
    [
        (1_000_000, 4_000_000, 0, 0.3),
        (5, 5, 0, 0.0),
        (0, 99_000_000, 0, 1.0),
        (None, None, 0, 0.0),
        (None, None, 2, 0.2),
    ],
)
def test_the_time_in_which_something_waited_for_a_core_is_counted_from_the_start_of_probation(
    tmp_path: Path, before: int | None, after: int | None, stolen: int, share: float
) -> None:
    now = iter((100.0, 110.0))
    kernel(tmp_path, waited_us=before, stolen=7)
    contention = CpuContention(lambda: next(now), tmp_path)
    ticks = stolen * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
    kernel(tmp_path, waited_us=after, stolen=7 + ticks)
    assert contention.share() == pytest.approx(share)


def test_this_kernel_can_be_asked() -> None:
    assert 0.0 <= CpuContention(time.monotonic).share() <= 1.0


def test_how_far_it_is_is_said_at_every_look() -> None:
    class Served:
        """What is served gets one answer more at every look."""

        finished = 0

        def counters(self) -> ServingCounters:
            self.finished += 1
            return counters(self.finished)

    heard: list[Probation] = []
    settings = InstallSettings(probation_seconds=60.0, probation_requests=3)
    assert asyncio.run(watch_probation(cast(Serving, Served()), settings, None, heard.append)) is None
    assert [(each.requests, each.of_requests, each.of_seconds) for each in heard] == [(1, 3, 60.0), (2, 3, 60.0)]
