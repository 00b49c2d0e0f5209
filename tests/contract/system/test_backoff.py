"""How long what failed is left alone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from contract.system.backoff import MAX_RETRY_AFTER_SECONDS, Backoff, doubled


def low(least: float, most: float) -> float:
    return least


def high(least: float, most: float) -> float:
    return most


def test_waits_double_up_to_a_bound_and_begin_again_after_a_success() -> None:
    backoff = Backoff(5.0, 60.0, high)
    assert [backoff.after_failure() for _ in range(6)] == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    backoff.reset()
    assert backoff.after_failure() == 5.0


def test_jitter_takes_up_to_half() -> None:
    assert [Backoff(8.0, 60.0, spread).after_failure() for spread in (low, high)] == [4.0, 8.0]


def test_no_number_of_failures_is_too_much_to_count() -> None:
    assert doubled(1.0, 8.0, 10**9) == 8.0


@given(st.floats(allow_nan=False), st.integers(0, 2000))
def test_what_a_server_asks_for_is_granted_within_an_hour_and_jitter(asked: float, failures: int) -> None:
    backoff = Backoff(5.0, 900.0, random.uniform)
    for _ in range(failures % 40):
        backoff.after_failure()
    delay = backoff.after_failure(asked)
    assert delay >= min(asked, MAX_RETRY_AFTER_SECONDS)
    assert 0.0 < delay <= 1.1 * MAX_RETRY_AFTER_SECONDS
