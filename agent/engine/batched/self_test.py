"""Proves on this processor and graph what the batched engine relies on, before the first request."""

from __future__ import annotations

import numpy as np

from agent.engine.batched.graph import Decoder
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


def prove_all(runner: Runner, pool: Pool, decoder: Decoder, slice_length: int) -> int:
    """Prove what this graph gives reason for; the widest mask with short rope factors, 0 if that never matters.

    Raises:
        Declined: a proof fails.
    """
    vocab_size = decoder.vocab_size
    prove(runner, pool, slice_length=slice_length, vocab_size=vocab_size)
    if decoder.window:
        prove_window(runner, pool, slice_length=slice_length, vocab_size=vocab_size, window=decoder.window)
    if not 0 < decoder.rope_switch < pool.length:
        return 0
    prove_switch(runner, pool, slice_length=slice_length, vocab_size=vocab_size, width=decoder.rope_switch + 1)
    return decoder.rope_switch


def prove(runner: Runner, pool: Pool, *, slice_length: int, vocab_size: int, past: int = 0, width: int = 0) -> None:
    """Read, decode alone and beside another, and compare; the long one begins behind ``past`` tokens of nothing.

    Keys and values of zeros are tokens like any other, and as long as they are only read they take no memory: so what
    happens past a sliding window is proved without reading a window full of tokens.

    Raises:
        Declined: a row depends on its neighbours or on how its prompt was cut.
    """
    where = f", past {past} tokens" if past else ", with long rope factors" if width else ""
    random = np.random.Generator(np.random.PCG64(7))
    one, other = (random.integers(0, vocab_size, size).tolist() for size in (LONG, SHORT))
    last = pool.slots - 1
    whole = runner.prefill(last, past, one, width)[-1].copy()
    sliced = whole
    for start in range(0, LONG, slice_length):
        sliced = runner.prefill(0, past + start, one[start : start + slice_length], width)[-1]
    apart = divergence(whole, sliced)
    if not apart <= MAX_DIVERGENCE:
        raise Declined(f"reading a prompt in slices changes it here (by {apart:.3g} nats{where})")
    alone = runner.decode(0, [one[0]], [past + LONG], width)[0].copy()
    if pool.slots == 1:
        return
    runner.prefill(1, 0, other, width)
    beside = runner.decode(0, [one[0], other[0]], [past + LONG, SHORT], width)[0]
    difference = float(np.abs(alone - beside).max())
    if not difference <= MAX_DIFFERENCE:
        raise Declined(f"requests in one batch change each other here (by {difference:.3g}{where})")
    if past:
        return  # moving a slot copies what was never written
    pool.copy(0, 1, LONG)
    moved = runner.decode(1, [one[0]], [LONG], width)[0]
    difference = float(np.abs(alone - moved).max())
    if not difference <= MAX_DIFFERENCE:
        raise Declined(f"a request that moves to another slot changes here (by {difference:.3g}{where})")


def prove_window(runner: Runner, pool: Pool, *, slice_length: int, vocab_size: int, window: int) -> None:
    """The same across the edge of a sliding window, if a request can get there.

    Raises:
        Declined: see :func:`prove`.
    """
    past = max(0, window - LONG // 2) // slice_length * slice_length
    if past and past + LONG < pool.length:
        pool.forget()  # whatever was there is zeros again
        prove(runner, pool, slice_length=slice_length, vocab_size=vocab_size, past=past)


def prove_switch(runner: Runner, pool: Pool, *, slice_length: int, vocab_size: int, width: int) -> None:
    """The same with a mask so wide that the long rope factors are taken, and that they are others than the short ones.

    Raises:
        Declined: the mask's width changes nothing; or see :func:`prove`.
    """
    tokens = np.random.Generator(np.random.PCG64(13)).integers(0, vocab_size, SHORT).tolist()
    short = runner.prefill(0, 0, tokens)[-1].copy()
    if np.array_equal(short, runner.prefill(0, 0, tokens, width)[-1]):
        raise Declined("its rope factors do not switch where its graph says")
    prove(runner, pool, slice_length=slice_length, vocab_size=vocab_size, width=width)


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
