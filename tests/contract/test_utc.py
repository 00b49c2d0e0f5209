"""Times as they stand in documents."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.utc import LAST_YEAR, format_utc, parse_utc


@given(st.integers(0, int(datetime(LAST_YEAR, 12, 31, tzinfo=UTC).timestamp())))
def test_a_time_is_read_as_it_is_written(seconds: int) -> None:
    assert parse_utc(format_utc(seconds)) == seconds


@pytest.mark.parametrize("text", ["2026-12-01T02:00:00Z", "2026-12-01t02:00:00.000z", "2026-12-01T02:00:00+00:00"])
def test_all_ways_of_rfc_3339_to_write_utc_are_read(text: str) -> None:
    assert format_utc(parse_utc(text)) == "2026-12-01T02:00:00Z"


@given(st.text(max_size=40))
def test_anything_else_is_refused_in_a_sentence(text: str) -> None:
    try:
        parse_utc(text)
    except ValueError as error:
        assert "write it as 2026-12-01T02:00:00Z" in str(error)
