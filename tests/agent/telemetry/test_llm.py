"""Counters rise, histograms are cumulative."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.telemetry.llm import SECONDS, Histogram, LlmMeter


@given(st.lists(st.floats(0, 500)))
def test_cumulative_counts_say_how_many_were_at_most_a_bound(values: list[float]) -> None:
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)
    expected = [sum(value <= bound for value in values) for bound in SECONDS]
    assert histogram.cumulative() == [*expected, len(values)]
    assert histogram.count == len(values)


def test_sample_counts_requests_tokens_and_times() -> None:
    meter = LlmMeter(1.0)
    meter.finish("stop", prompt_tokens=10, completion_tokens=5, first_token_seconds=0.2, decode_seconds=0.4)
    meter.finish("cancelled", prompt_tokens=1)
    meter.refuse("queue_full")
    sample = msgspec.to_builtins(meter.sample(queue=2, active=1))
    assert sample["requests"] == {"stop": 1, "cancelled": 1}
    assert sample["refused"] == {"queue_full": 1}
    assert sample["gen_ai.usage.input_tokens"] == 11
    assert sample["gen_ai.server.time_per_output_token"]["sum"] == 0.1
    assert sample["gen_ai.server.time_to_first_token"]["count"] == 1
    assert (sample["queue"], sample["active"], sample["start"]) == (2, 1, 1.0)
