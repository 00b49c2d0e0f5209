"""The verdict on a bundle in probation."""

from __future__ import annotations

import pytest

from agent.install.ports import ServingCounters
from agent.install.probation import judge
from agent.install.settings import InstallSettings
from agent.state.installation import Failure
from contract.reasons import Reason

SETTINGS = InstallSettings(probation_seconds=60, probation_requests=20, min_tokens_per_second=10)


def counters(finished: int = 0, failed: int = 0, crashes: int = 0, speed: float | None = None) -> ServingCounters:
    return ServingCounters(finished, failed, crashes, speed)


def test_it_holds_when_the_time_is_over_or_enough_was_answered() -> None:
    assert judge(counters(), 59.9, SETTINGS, None) == "watching"
    assert judge(counters(), 60, SETTINGS, None) == "held"
    assert judge(counters(19), 1, SETTINGS, None) == "watching"
    assert judge(counters(20), 1, SETTINGS, None) == "held"


@pytest.mark.parametrize(
    ("seen", "predecessor", "reason"),
    [
        (counters(20, crashes=1), None, Reason.PROBATION_CRASHED),
        (counters(20, failed=1), None, Reason.PROBATION_ERRORS),
        (counters(20, speed=9.9), None, Reason.PROBATION_TOO_SLOW),
        (counters(20, speed=49), 100.0, Reason.PROBATION_TOO_SLOW),
    ],
)
def test_a_fault_weighs_more_than_enough_answers(
    seen: ServingCounters, predecessor: float | None, reason: Reason
) -> None:
    verdict = judge(seen, 999, SETTINGS, predecessor)
    assert isinstance(verdict, Failure)
    assert verdict.reason is reason


def test_a_speed_over_too_few_answers_is_no_evidence() -> None:
    assert judge(counters(2, speed=0.1), 1, SETTINGS, 100.0) == "watching"


def test_half_the_predecessors_speed_is_enough_by_default() -> None:
    assert judge(counters(5, speed=50), 1, SETTINGS, 100.0) == "watching"
