"""Fewer answers at once when the box is hot or swaps; all of them again when it has been calm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host.throttling import CALM_SECONDS, MAX_LEVEL, STEP_SECONDS, Limit, Strain, Throttle, evaluate_strain
from agent.telemetry.samples import Cpu, Frequency, Memory, Pressure, Swap, SystemSample

HOT, SHORT = "throttled_temperature", "throttled_memory"


def heat(degrees: float, limit: float = 80.0) -> SystemSample:
    return SystemSample(1.0, temperatures={"cpu": degrees, "disk": 99.0}, temperature_limits={"cpu": limit})


@pytest.mark.parametrize(
    ("sample", "high", "calm"),
    [
        (SystemSample(1.0), (), True),
        (heat(60), (), True),
        (heat(75), (), False),
        (heat(79), (HOT,), False),
        (SystemSample(1.0, throttling=True), (HOT,), False),
        (SystemSample(1.0, throttling=False), (), True),
        (SystemSample(1.0, throttled=9), (HOT,), False),
        (SystemSample(1.0, throttled=8), (), True),
        (SystemSample(1.0, memory=Memory(1000, 30)), (SHORT,), False),
        (SystemSample(1.0, memory=Memory(1000, 60)), (), False),
        (SystemSample(1.0, memory=Memory(1000, 500)), (), True),
        (SystemSample(1.0, pressure={"memory": Pressure(some=90.0, full=6.0)}), (SHORT,), False),
        (SystemSample(1.0, pressure={"memory": Pressure(some=90.0, full=2.0)}), (), False),
        (SystemSample(1.0, pressure={"cpu": Pressure(some=99.0, full=99.0)}), (), True),
        (SystemSample(1.0, memory=Memory(100, 10), swap=Swap(9, 9, 9, 9, 2e6, 2e6)), (SHORT,), False),
        (SystemSample(1.0, memory=Memory(100, 90), swap=Swap(9, 9, 9, 9, 2e6, 2e6)), (), False),
        # A processor that saves energy is slow, too; only a hot one throttles.
        (SystemSample(1.0, cpu=Cpu(90.0, []), frequency_mhz=Frequency(600, 1800)), (), True),
        (
            SystemSample(
                1.0,
                cpu=Cpu(90.0, []),
                frequency_mhz=Frequency(600, 1800),
                temperatures={"c": 75.0},
                temperature_limits={"c": 80.0},
            ),
            (HOT,),
            False,
        ),
    ],
)
def test_strain_is_read_off_a_sample(sample: SystemSample, high: tuple[str, ...], calm: bool) -> None:
    assert evaluate_strain(sample, throttled_before=8) == Strain(high, calm)


def test_first_count_of_throttling_is_history() -> None:
    assert evaluate_strain(SystemSample(1.0, throttled=9), None) == Strain()


def test_concurrency_halves_with_every_level_and_never_ends() -> None:
    assert [Limit(level).concurrency(8) for level in range(5)] == [8, 4, 2, 1, 1]


def test_it_steps_up_at_once_and_down_only_after_calm() -> None:
    throttle = Throttle()
    hot, between, calm = Strain((HOT,), False), Strain((), False), Strain()
    assert throttle.update(hot, 0) == Limit(1, (HOT,))
    assert throttle.update(hot, STEP_SECONDS - 1).level == 1
    assert throttle.update(hot, STEP_SECONDS).level == 2
    assert throttle.update(between, 1000).level == 2
    assert throttle.update(calm, 1001).level == 2
    assert throttle.update(between, 1030).level == 2
    assert throttle.update(calm, 1031).level == 2
    assert throttle.update(calm, 1031 + CALM_SECONDS).level == 1
    assert throttle.update(calm, 1032 + CALM_SECONDS).level == 1
    assert throttle.update(calm, 1031 + 2 * CALM_SECONDS) == Limit()


@given(st.lists(st.tuples(st.sampled_from([Strain((HOT,), False), Strain((), False), Strain()]), st.floats(0, 100))))
def test_it_never_leaves_its_bounds_and_moves_by_one(readings: list[tuple[Strain, float]]) -> None:
    throttle = Throttle()
    now = 0.0
    for strain, seconds in readings:
        before = throttle.limit.level
        now += seconds
        limit = throttle.update(strain, now)
        assert 0 <= limit.level <= MAX_LEVEL
        assert abs(limit.level - before) <= 1
        assert not (strain.high and limit.level < before)
        assert bool(limit.level) == bool(limit.reasons)
