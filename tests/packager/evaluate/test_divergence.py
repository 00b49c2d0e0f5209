"""The measures, against textbook values and properties."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packager.evaluate.divergence import Comparison, divergences, log_softmax

rows = hnp.arrays(np.float32, (5, 17), elements=st.floats(-30, 30, width=32))


def test_divergence_of_two_coins() -> None:
    p, q = np.log(np.array([[0.5, 0.5]], np.float32)), np.log(np.array([[0.9, 0.1]], np.float32))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert abs(float(divergences(p, q)[0]) - expected) < 1e-6


@given(rows, rows)
def test_divergence_is_never_negative_and_nothing_from_oneself(first: np.ndarray, second: np.ndarray) -> None:
    one, other = log_softmax(first), log_softmax(second)
    assert (divergences(one, other) >= 0).all()
    assert np.allclose(divergences(one, one), 0, atol=1e-6)


@given(rows)
def test_half_precision_costs_next_to_nothing(logits: np.ndarray) -> None:
    ours = log_softmax(logits)
    assert (divergences(ours.astype(np.float16).astype(np.float32), ours) < 0.02).all()


def test_infinities_of_half_precision_stay_numbers() -> None:
    kept = np.array([[0.0, -np.inf]], np.float16).astype(np.float32)
    assert np.isinf(kept).any()
    assert divergences(kept, log_softmax(np.array([[0.0, -5.0]], np.float32)))[0] < 0.01


def test_summary_of_the_same_model_is_a_perfect_score() -> None:
    logits = log_softmax(np.random.default_rng(1).normal(size=(40, 11)).astype(np.float32))
    comparison = Comparison()
    comparison.add(logits, logits, np.arange(40) % 11)
    summary = comparison.summary()
    assert (summary["kl"], summary["top1_agreement"], summary["perplexity_ratio"]) == (0.0, 1.0, 1.0)
    assert summary["tokens"] == 40


def test_slices_add_up_to_the_whole() -> None:
    generator = np.random.default_rng(2)
    ours, theirs = (log_softmax(generator.normal(size=(30, 9)).astype(np.float32)) for _ in range(2))
    tokens = np.arange(30) % 9
    whole, sliced = Comparison(), Comparison()
    whole.add(theirs, ours, tokens)
    for start in range(0, 30, 7):
        sliced.add(theirs[start : start + 7], ours[start : start + 7], tokens[start : start + 7])
    assert sliced.summary() == whole.summary()


def test_a_padded_vocabulary_is_compared_where_both_have_tokens() -> None:
    logits = log_softmax(np.random.default_rng(3).normal(size=(4, 10)).astype(np.float32))
    comparison = Comparison()
    comparison.add(logits, logits[:, :8], np.zeros(4, np.int64))
    assert comparison.summary()["top1_agreement"] > 0
