"""Gates on differences of counters: what holds, what does not, and what cannot be said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.rollout.counters import Counters, Reading, accumulate
from fleet.rollout.gates import Evidence, Outcome, judge
from fleet.rollout.spec import Gates
from tests.fleet.rollout.world import work

GATES = Gates()


def one(before: Counters | None, after: Counters | None, *, memory: float | None = 0.5, name: str = "box") -> Evidence:
    return Evidence(name, before, after, heard=True, ready=True, memory_available=memory)


def test_as_before_passes_every_gate() -> None:
    verdict = judge(GATES, [one(work(100), work(100))], [])
    assert verdict.outcome is Outcome.PASSED
    assert len(verdict.values) == 6


@pytest.mark.parametrize("requests", [0, 1, 19])
@pytest.mark.parametrize("side", ["before", "after"])
def test_fewer_requests_than_needed_never_pass(requests: int, side: str) -> None:
    few, enough = work(requests), work(100)
    evidence = one(few, enough) if side == "before" else one(enough, few)
    assert judge(GATES, [evidence], []).outcome is Outcome.INCONCLUSIVE


def test_a_fault_that_can_be_seen_is_no_question_of_amount() -> None:
    verdict = judge(GATES, [one(work(100), work(1, crashes=1))], [])
    assert verdict.outcome is Outcome.FAILED
    assert "worker crashes: 1" in verdict.text


def test_little_memory_fails_and_none_said_is_inconclusive() -> None:
    assert judge(GATES, [one(work(100), work(100), memory=0.01)], []).outcome is Outcome.FAILED
    assert judge(GATES, [one(work(100), work(100), memory=None)], []).outcome is Outcome.INCONCLUSIVE


def test_the_median_device_decides_on_speed_not_the_one_that_was_asked_most() -> None:
    slow = one(work(10_000), work(10_000, per_second=5.0), name="busy")
    fine = [one(work(100), work(100), name=f"box-{number}") for number in range(4)]
    assert judge(GATES, [slow, *fine], []).outcome is Outcome.PASSED
    assert judge(GATES, [slow, slow, slow, *fine[:2]], []).outcome is Outcome.FAILED


def test_histograms_of_other_bounds_cannot_be_compared() -> None:
    other = Counters(100, token_answers=100, token_seconds=10.0, bounds=(7.0,), first_token=(100, 100))
    assert judge(GATES, [one(work(100), other), one(work(100), work(100))], []).outcome is Outcome.INCONCLUSIVE


def test_nobody_to_judge_is_inconclusive() -> None:
    assert judge(Gates(None, None, None, None, None, None), [], []).outcome is Outcome.INCONCLUSIVE


evidences = st.builds(
    Evidence,
    st.just("box"),
    st.none() | st.builds(work, st.integers(0, 60)),
    st.none() | st.builds(work, st.integers(0, 60), crashes=st.integers(0, 2)),
    st.booleans(),
    st.none() | st.booleans(),
    st.none() | st.floats(0, 1),
)


@given(st.lists(evidences, max_size=6), st.lists(evidences, max_size=4))
def test_a_pass_means_that_enough_was_seen_of_enough_devices(judged: list[Evidence], control: list[Evidence]) -> None:
    verdict = judge(GATES, judged, control)
    if verdict.outcome is Outcome.PASSED:
        assert judged
        assert all(each.heard and each.ready for each in judged)
        enough = [
            each
            for each in judged
            if each.before and each.after and min(each.before.requests, each.after.requests) >= 20
        ]
        assert 2 * len(enough) >= len(judged)


def test_a_restart_is_counted_on_and_a_fall_is_told() -> None:
    total, known = accumulate(Counters(), None, Reading(1.0, work(500)))
    assert (total, known) == (Counters(), True)
    total, known = accumulate(total, Reading(1.0, work(500)), Reading(1.0, work(530)))
    assert (total.requests, known) == (30, True)
    total, known = accumulate(total, Reading(1.0, work(530)), Reading(2.0, work(4)))
    assert (total.requests, known) == (34, True)
    total, known = accumulate(total, Reading(2.0, work(4)), Reading(2.0, work(3)))
    assert (total.requests, known) == (34, False)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100)), max_size=20))
def test_a_total_never_falls(samples: list[tuple[int, int]]) -> None:
    total, before = Counters(), None
    for era, requests in samples:
        now = Reading(float(era), work(requests))
        after, _ = accumulate(total, before, now)
        assert after.requests >= total.requests
        total, before = after, now


@pytest.mark.parametrize(("slow", "expected"), [(0, 0.095), (6, 0.5 + 0.5 / 6), (100, 0.5 + 0.5 * 0.95)])
def test_quantiles_are_interpolated(slow: int, expected: float) -> None:
    found = work(100, slow=slow).first_token_quantile(0.95)
    assert found == pytest.approx(expected)
