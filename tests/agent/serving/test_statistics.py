"""What probation is told of speed, for a load that comes as it likes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.install.ports import ServingCounters, Speed
from agent.install.settings import InstallSettings
from agent.install.update.probation import evaluate_probation
from agent.serving.statistics import Statistics
from agent.state.installation import Failure

SETTINGS = InstallSettings(probation_seconds=60)
GAIN = 0.4
"""What one more answer adds to a worker that batches, of what the first one gets."""


def serve(
    answers: int,
    streams: int,
    *,
    tokens: int = 50,
    speed: float = 20.0,
    idle: float = 0.0,
    statistics: Statistics | None = None,
) -> ServingCounters:
    """``answers`` by a worker that gives one ``speed`` tokens a second and batches; ``idle`` seconds between rounds."""
    statistics = statistics or Statistics()
    now, number = 100.0, 0
    while number < answers:
        batch = range(number, min(number + streams, answers))
        step = len(batch) / (speed * (1 + GAIN * (len(batch) - 1)))
        for token in range(1, tokens + 1):
            now += step
            for each in batch:
                statistics.record_tokens(each, token, now)
        for each in batch:
            statistics.record_end(each, now, tokens)
            statistics.finished += 1
        number = batch.stop
        now += idle
    return statistics.counters(now)


def speed_of(counters: ServingCounters) -> Speed:
    assert counters.speed is not None
    return counters.speed


def test_one_stream_is_as_fast_together_as_each() -> None:
    speed = speed_of(serve(5, 1))
    assert speed.aggregate == pytest.approx(20.0)
    assert speed.per_stream == pytest.approx(20.0)


def test_the_same_load_gives_the_same_number_however_long_nobody_asks_in_between() -> None:
    for streams in (1, 8):
        busy, idle = speed_of(serve(24, streams)), speed_of(serve(24, streams, idle=30.0))
        assert idle.aggregate == pytest.approx(busy.aggregate)
        assert idle.per_stream == pytest.approx(busy.per_stream)


def test_several_answers_at_once_count_together() -> None:
    speed = speed_of(serve(24, 8))
    assert speed.aggregate == pytest.approx(20.0 * (1 + GAIN * 7))
    assert speed.per_stream == pytest.approx(speed.aggregate / 8)


@pytest.mark.parametrize(("before", "since"), [(1, 8), (8, 1), (1, 1), (8, 8), (3, 5)])
def test_more_or_fewer_streams_than_before_do_not_look_slower(before: int, since: int) -> None:
    assert evaluate_probation(serve(24, since), 1, SETTINGS, speed_of(serve(24, before))) == "watching"


@pytest.mark.parametrize("streams", [1, 3, 8])
def test_a_third_of_the_speed_goes_back(streams: int) -> None:
    verdict = evaluate_probation(serve(24, streams, speed=20.0 / 3), 1, SETTINGS, speed_of(serve(24, streams)))
    assert isinstance(verdict, Failure)


def test_answers_that_are_not_over_count_as_far_as_they_are() -> None:
    statistics = Statistics()
    for token in range(1, 102):
        statistics.record_tokens(1, token, token / 10)
        statistics.record_tokens(2, token, token / 10)
    assert speed_of(statistics.counters(10.1)) == Speed(pytest.approx(20.0), pytest.approx(10.0))


def test_one_that_hangs_makes_it_slow() -> None:
    statistics = Statistics()
    for token in range(1, 12):
        statistics.record_tokens(1, token, token / 10)
    assert speed_of(statistics.counters(10.1)).aggregate == pytest.approx(1.0)


def test_an_answer_that_lost_its_worker_takes_no_more_time() -> None:
    statistics = Statistics()
    for token in range(1, 12):
        statistics.record_tokens(1, token, token / 10)
    statistics.record_end(1, 1.1)
    assert speed_of(statistics.counters(100.0)).aggregate == pytest.approx(10.0)


def test_what_never_gave_a_token_is_no_speed() -> None:
    statistics = Statistics()
    statistics.record_end(1, 5.0, 7)
    statistics.record_tokens(2, 1, 6.0)
    statistics.record_end(2, 9.0, 1)
    assert statistics.counters(10.0).speed is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.floats(0, 3), st.booleans()), max_size=60))
def test_no_more_busy_time_than_there_was_and_no_less_each_than_fits(
    events: list[tuple[int, int, float, bool]],
) -> None:
    statistics, now, totals = Statistics(), 0.0, dict.fromkeys(range(6), 0)
    for answer, tokens, seconds, ends in events:
        now += seconds
        totals[answer] += tokens
        (statistics.record_end if ends else lambda a, at, n: statistics.record_tokens(a, n, at))(
            answer, now, totals[answer]
        )
    counters = statistics.counters(now)
    assert 0 <= counters.busy_seconds <= now + 1e-9
    if counters.speed is not None:
        assert 0 < counters.speed.per_stream <= counters.speed.aggregate * (1 + 1e-9)
