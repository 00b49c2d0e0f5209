"""Proves on this processor and graph what the batched engine relies on, before the first request."""

from __future__ import annotations

import numpy as np

from agent.engine.batched.pool import Pool
from agent.engine.batched.runner import Runner
from agent.engine.native import Declined
from agent.engine.sampling import log_softmax

LONG, SHORT = 48, 16
"""Tokens of the two sequences: several slices, and another length beside it."""

MAX_DIFFERENCE = 1e-3
"""Between a row alone and the same row beside another: exact on INT8 kernels, rounding of fp32 ones."""

MAX_DIVERGENCE = 0.05
"""In nats, between reading at once and in slices. INT8 activations may round differently; a wrong position or a
forgotten token is off by whole nats."""


def prove(runner: Runner, pool: Pool, *, slice_length: int, vocab_size: int) -> None:
    """Read, decode alone and beside another, and compare.

    Raises:
        Declined: a row depends on its neighbours or on how its prompt was cut.
    """
    random = np.random.Generator(np.random.PCG64(7))
    one, other = (random.integers(0, vocab_size, size).tolist() for size in (LONG, SHORT))
    last = pool.slots - 1
    whole = runner.prefill(last, 0, one)[-1].copy()
    sliced = whole
    for start in range(0, LONG, slice_length):
        sliced = runner.prefill(0, start, one[start : start + slice_length])[-1]
    apart = divergence(whole, sliced)
    if not apart <= MAX_DIVERGENCE:
        raise Declined(f"reading a prompt in slices changes it here (by {apart:.3g} nats)")
    alone = runner.decode(0, [one[0]], [LONG])[0].copy()
    if pool.slots == 1:
        return
    runner.prefill(1, 0, other)
    beside = runner.decode(0, [one[0], other[0]], [LONG, SHORT])[0]
    difference = float(np.abs(alone - beside).max())
    if not difference <= MAX_DIFFERENCE:
        raise Declined(f"requests in one batch change each other here (by {difference:.3g})")
    pool.copy(0, 1, LONG)
    moved = runner.decode(1, [one[0]], [LONG])[0]
    difference = float(np.abs(alone - moved).max())
    if not difference <= MAX_DIFFERENCE:
        raise Declined(f"a request that moves to another slot changes here (by {difference:.3g})")


def exact_width(runner: Runner, pool: Pool, *, slice_length: int, width: int, vocab_size: int) -> int:
    """How many prompt tokens to read at a time when nobody waits: ``width`` if that changes no bit, or a slice.

    Every multiple of a slice up to ``width`` occurs, in front of a prompt's rest, so every one is tried, each behind
    tokens that were read before. Logits, keys and values have to be the same.
    """
    random = np.random.Generator(np.random.PCG64(11))
    total = width + slice_length
    if pool.length < total:
        return slice_length
    tokens = random.integers(0, vocab_size, total).tolist()
    rows = {
        start + slice_length: runner.prefill(0, start, tokens[start : start + slice_length])[-1].copy()
        for start in range(0, total, slice_length)
    }
    kept = pool.take(0, total)
    for end in range(2 * slice_length, total + 1, slice_length):
        begin = max(0, end - width)
        row = runner.prefill(0, begin, tokens[begin:end])[-1]
        if not (np.array_equal(row, rows[end]) and np.array_equal(pool.take(0, end), kept[:, :, :end])):
            return slice_length
    return width


def divergence(
    one: np.ndarray[tuple[int], np.dtype[np.float32]], other: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> float:
    """Kullback-Leibler divergence of two rows of logits, in nats; NaN if one has a NaN."""
    first, second = log_softmax(one), log_softmax(other)
    return float((np.exp(first) * (first - second)).sum())
