"""Quotas, at any time and in any order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.gateway.quota import Bucket, Ledger, Limits, QuotaExceeded, Used, starts

NOW = 1_800_000_030.0


def test_requests_of_a_minute_are_bounded_and_come_back_with_the_next() -> None:
    ledger, limits = Ledger(), Limits(requests_per_minute=2)
    ledger.admit("a", limits, NOW)
    assert ledger.headers("a", limits, NOW) == {
        "x-ratelimit-limit-requests": "2", "x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "30s",
    }  # fmt: skip
    ledger.admit("a", limits, NOW)
    with pytest.raises(QuotaExceeded, match="2 requests a minute, and they are used up: try again in 30 s") as told:
        ledger.admit("a", limits, NOW)
    assert told.value.retry_after == 30
    ledger.admit("b", limits, NOW)
    ledger.admit("a", limits, NOW + 30)


def test_what_is_reserved_counts_until_it_is_settled() -> None:
    ledger, limits = Ledger(), Limits(tokens_per_day=100)
    ledger.admit("a", limits, NOW)
    ledger.reserve("a", 150)
    with pytest.raises(QuotaExceeded, match="100 tokens a day"):
        ledger.admit("a", limits, NOW)
    ledger.settle("a", 150, 40, NOW)
    ledger.admit("a", limits, NOW)
    assert ledger.headers("a", limits, NOW)["x-ratelimit-remaining-tokens"] == "60"


def test_the_window_that_is_open_last_is_told() -> None:
    ledger, limits = Ledger(), Limits(requests_per_minute=1, requests_per_day=1)
    ledger.admit("a", limits, NOW)
    with pytest.raises(QuotaExceeded, match="a day"):
        ledger.admit("a", limits, NOW)


def test_what_others_used_counts_and_nothing_is_counted_twice() -> None:
    ledger, limits = Ledger(), Limits(requests_per_minute=10)
    ledger.admit("a", limits, NOW)
    taken = ledger.take_unsaved()
    bucket = Bucket("a", "minute", starts(NOW)[0])
    assert taken[bucket] == Used(1, 0)
    ledger.admit("a", limits, NOW)
    ledger.learn({bucket: Used(8, 0)}, NOW)
    assert ledger.headers("a", limits, NOW)["x-ratelimit-remaining-requests"] == "1"
    ledger.put_back(taken)
    assert ledger.take_unsaved()[bucket] == Used(2, 0)


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=80),
)
def test_no_minute_ever_has_more_than_its_limit(limit: int, asked: list[tuple[str, float]]) -> None:
    ledger, limits, now = Ledger(), Limits(requests_per_minute=limit), NOW
    let_in: dict[tuple[str, int], int] = {}
    for token, later in asked:
        now += later
        window = (token, starts(now)[0])
        try:
            ledger.admit(token, limits, now)
        except QuotaExceeded as exceeded:
            assert let_in[window] == limit
            assert 0 < exceeded.retry_after <= 60
        else:
            let_in[window] = let_in.get(window, 0) + 1
    assert all(count <= limit for count in let_in.values())
