"""Choosing a token: every parameter against the plain definition of what it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace

from agent.engine.interface import Generation
from agent.engine.sampling import Sampler, best, drawn, log_softmax, nucleus

END = 3

rows = st.integers(1, 1500).flatmap(
    lambda size: arrays(np.float32, size, elements=st.floats(-30, 30, width=32), fill=st.floats(-30, 30, width=32))
)


def sampler(prompt: tuple[int, ...] = (), **fields: Any) -> Sampler:
    return Sampler(Generation(1, "anna", prompt="", **fields), prompt, (END,))


def row_of(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


@given(rows, st.integers(1, 1600))
def test_best_is_a_stable_sort(row: np.ndarray[Any, np.dtype[np.float32]], count: int) -> None:
    tokens, values = best(row, count)
    expected = np.argsort(-row, kind="stable")[:count]
    assert tokens.tolist() == expected.tolist()
    assert values.tolist() == row[expected].tolist()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.2, 0.9, 0.999]), st.sampled_from([0.1, 1.0, 5.0]))
def test_the_nucleus_is_what_a_sort_of_everything_gives(seed: int, top_p: float, temperature: float) -> None:
    row = np.random.Generator(np.random.PCG64(seed)).normal(size=5000).astype(np.float32) * 3
    weights = np.exp((row - row.max()) / temperature)
    order = np.argsort(-row, kind="stable")
    ladder = np.cumsum(weights[order], dtype=np.float64)
    count = int(np.searchsorted(ladder, top_p * ladder[-1])) + 1
    found = nucleus(row, weights, top_p)
    assert abs(len(found) - count) <= 1, "sums of floats depend on their order"
    assert found.tolist() == order[: len(found)].tolist()


@given(rows, st.floats(0.01, 0.99))
def test_a_nucleus_is_never_empty_and_reaches_its_share(
    row: np.ndarray[Any, np.dtype[np.float32]], top_p: float
) -> None:
    weights = np.exp(row - row.max())
    found = nucleus(row, weights, top_p)
    assert len(found) >= 1
    assert weights[found].sum(dtype=np.float64) >= top_p * weights.sum(dtype=np.float64) * (1 - 1e-6)


@given(rows, st.integers(0, 99), st.integers(1, 40), st.floats(0.05, 0.99), st.floats(0.0, 0.5))
def test_all_three_together_keep_what_each_keeps(
    row: np.ndarray[Any, np.dtype[np.float32]], seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    chosen = sampler(temperature=1.5, seed=seed, top_k=top_k, top_p=top_p, min_p=min_p).choose(row)
    order = np.argsort(-row, kind="stable")[:top_k]
    weights = np.exp((row[order].astype(np.float64) - row.max()) / 1.5)
    place = order.tolist().index(chosen)
    assert np.cumsum(weights)[place] - weights[place] < top_p * weights.sum() * (1 + 1e-6)
    assert weights[place] >= min_p * (1 - 1e-5)


@given(
    arrays(np.float32, st.integers(1, 1500), elements=st.sampled_from([0.0, 1e-30, 0.25, 1.0])),
    st.floats(0, 1, exclude_max=True),
)
def test_what_weighs_nothing_is_never_drawn(weights: np.ndarray[Any, np.dtype[np.float32]], share: float) -> None:
    weights[len(weights) // 2] = 1.0
    place = drawn(weights, share)
    assert weights[place] > 0
    ladder = np.cumsum(weights, dtype=np.float64)
    assert ladder[place] >= share * ladder[-1] * (1 - 1e-5)
    assert ladder[place] - weights[place] <= share * ladder[-1] * (1 + 1e-5)


def test_a_nan_is_chosen_so_that_it_is_found() -> None:
    assert sampler(temperature=1.0, seed=1).choose(row_of(1.0, np.nan, 2.0)) == 1


@given(rows, st.integers(0, 99), st.integers(1, 5))
def test_top_k_draws_among_the_k_best(row: np.ndarray[Any, np.dtype[np.float32]], seed: int, k: int) -> None:
    chosen = sampler(temperature=3.0, seed=seed, top_k=k).choose(row)
    assert chosen in np.argsort(-row, kind="stable")[:k]


@given(rows, st.integers(0, 99), st.floats(0.01, 0.99))
def test_top_p_draws_inside_the_smallest_nucleus(
    row: np.ndarray[Any, np.dtype[np.float32]], seed: int, top_p: float
) -> None:
    chosen = sampler(temperature=1.0, seed=seed, top_p=top_p).choose(row)
    order = np.argsort(-row, kind="stable")
    weights = np.exp(row.astype(np.float64) - row.max())[order]
    before = np.cumsum(weights) - weights
    assert before[order.tolist().index(chosen)] < top_p * weights.sum() * (1 + 1e-6)


@given(rows, st.integers(0, 99), st.floats(0.01, 1.0))
def test_min_p_draws_what_is_likely_enough(row: np.ndarray[Any, np.dtype[np.float32]], seed: int, min_p: float) -> None:
    chosen = sampler(temperature=1.0, seed=seed, min_p=min_p).choose(row)
    assert np.exp(float(row[chosen]) - float(row.max())) >= min_p * (1 - 1e-6)


@given(rows, st.integers(0, 2**53))
def test_a_seed_repeats_the_draws(row: np.ndarray[Any, np.dtype[np.float32]], seed: int) -> None:
    one, two = sampler(temperature=1.0, seed=seed), sampler(temperature=1.0, seed=seed)
    assert [one.choose(row) for _ in range(5)] == [two.choose(row) for _ in range(5)]


def test_draws_follow_the_distribution() -> None:
    row = row_of(np.log(0.5), np.log(0.3), np.log(0.2), -np.inf)
    drawing = sampler(temperature=1.0, seed=1)
    counts = np.bincount([drawing.choose(row) for _ in range(20_000)], minlength=4) / 20_000
    assert counts == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.02)


def test_temperature_sharpens() -> None:
    row = row_of(1.0, 0.0)
    drawing = sampler(temperature=0.25, seed=1)
    share = np.mean([drawing.choose(row) == 0 for _ in range(20_000)])
    assert share == pytest.approx(1 / (1 + np.exp(-4)), abs=0.01)


def test_greedy_takes_the_lowest_of_equals_and_leaves_the_row_alone() -> None:
    row = row_of(1.0, 5.0, 5.0, 0.0)
    assert sampler((1,), repetition_penalty=1.01).choose(row) == 2
    assert row.tolist() == [1.0, 5.0, 5.0, 0.0]
    assert sampler().choose(row) == 1


def test_the_repetition_penalty_counts_prompt_and_answer_once_each() -> None:
    penal = sampler((0, 0, 0), repetition_penalty=2.0)
    assert penal.choose(row_of(4.0, 1.9, -1.0, -9.0)) == 0
    assert penal.choose(row_of(4.0, 2.1, -1.0, -9.0)) == 1
    penal.accept(1)
    assert penal.choose(row_of(-4.0, -4.0, -7.9, -9.0)) == 2, "negative logits are multiplied"


@given(st.integers(1, 4), st.lists(st.integers(4, 6), max_size=30), st.integers(0, 50))
def test_no_ngram_comes_twice(size: int, prompt: list[int], seed: int) -> None:
    drawing = sampler(tuple(prompt), no_repeat_ngram_size=size, temperature=2.0, seed=seed)
    tokens = list(prompt)
    for _ in range(20):
        known = {tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)}
        token = drawing.choose(np.zeros(64, dtype=np.float32))
        drawing.accept(token)
        tokens.append(token)
        if len(tokens) >= size:
            assert tuple(tokens[-size:]) not in known


def test_the_end_is_banned_until_there_are_enough_tokens() -> None:
    held = sampler(min_tokens=2)
    row = row_of(0.0, 1.0, 0.0, 9.0)
    for _ in range(2):
        assert held.choose(row) == 1
        held.accept(1)
    assert held.choose(row) == END


def test_a_mask_goes_before_bans() -> None:
    held = sampler(min_tokens=2)
    row = row_of(0.0, 1.0, 0.0, 9.0)
    assert held.choose(row, np.array([True, False, False, True])) == 0
    assert held.choose(row, np.array([False, False, False, True])) == END, "a grammar that is complete can only end"


def test_bias_moves_a_token() -> None:
    assert sampler(logit_bias={2: 10.0}).choose(row_of(0.0, 1.0, 0.0, 0.0)) == 2
    assert sampler(logit_bias={1: -10.0}).choose(row_of(0.5, 1.0, 0.0, 0.0)) == 0


def test_changed_parameters_count_from_the_next_token() -> None:
    drawing = sampler((5, 6, 5))
    row = np.zeros(8, dtype=np.float32)
    row[6] = 1.0
    assert drawing.choose(row) == 6
    drawing.change(Generation(1, "anna", prompt="", no_repeat_ngram_size=2))
    assert drawing.choose(row) != 6


@given(rows)
def test_log_probabilities_sum_to_one(row: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    assert np.exp(log_softmax(row)).sum() == pytest.approx(1.0)


@given(
    st.lists(st.integers(0, 99), max_size=300),
    st.floats(-2, 2, width=32),
    st.floats(-2, 2, width=32),
    st.integers(0, 99),
)
def test_presence_and_frequency_penalties_count_what_was_generated(
    generated: list[int], presence: float, frequency: float, seed: int
) -> None:
    """OpenAI's formula, token by token; the prompt counts for nothing."""
    row = np.random.Generator(np.random.PCG64(seed)).normal(0, 3, 100).astype(np.float32)
    penal = sampler((1, 2, 3, 3), presence_penalty=presence, frequency_penalty=frequency)
    for token in generated:
        penal.accept(token)
    expected = row.copy()
    for token in set(generated):
        expected[token] -= np.float32(presence) + np.float32(frequency) * np.float32(generated.count(token))
    assert penal.choose(row) == int(expected.argmax())


def test_penalties_may_change_while_it_runs() -> None:
    penal = sampler()
    for _ in range(3):
        penal.accept(1)
    row = row_of(0.0, 1.0, 0.5, -9.0)
    assert penal.choose(row) == 1
    penal.change(replace(penal.generation, frequency_penalty=0.5))
    assert penal.choose(row) == 2


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_64_bit_seed_draws_and_repeats(seed: int) -> None:
    row = np.zeros(64, dtype=np.float32)
    one, two = sampler(temperature=1.0, seed=seed), sampler(temperature=1.0, seed=seed)
    assert [one.choose(row) for _ in range(5)] == [two.choose(row) for _ in range(5)]
