"""Proves on this processor and graph what the batched engine relies on, before the first request.

Processors differ in their kernels. Some compute a row alike whatever else is in the run (AVX-512 VNNI); many have one
kernel for a single row and another for two and more (AVX2, ARM without dot product), whose sums differ in the last bit,
which rounding to INT8 makes more of. So two things are told apart: rows that depend on their neighbours, with which
nothing can be batched, and a lone row that differs from the same row in company, which :class:`Proof` measures and the
engine pads or allows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.engine.batched.graph import Decoder
from agent.engine.batched.pool import Pool
from agent.engine.batched.runner import Runner
from agent.engine.batched.speculation import MAX_DRAFT
from agent.engine.runtime_errors import Declined
from agent.engine.sampling import log_softmax

LONG, SHORT, MIDDLE = 48, 16, 33
"""Tokens of the three sequences: several slices, another length beside it, and one that ends within a slice."""

MAX_DIFFERENCE = 1e-3
"""In the logits, between a row in a run and the same row in another: exact on INT8 kernels, rounding of fp32 ones."""

MAX_DIVERGENCE = 0.05
"""In nats, between reading at once and in slices. INT8 activations may round differently; a wrong position or a
forgotten token is off by whole nats."""

MAX_LONE_DIVERGENCE = 0.25
"""In nats, between a row alone and in company. AVX2 gives 0.003 with a model of 135 M parameters, 0.13 with one of a
billion; every engine decodes a single request with that kernel."""

VERIFIED = MAX_DRAFT + 1
"""Tokens of the longest run that verifies a draft."""

LEAST_DIFFERENCE = float(np.finfo(np.float32).tiny)
"""Stands for keys and values that are not the same bit for bit."""

Row = NDArray[np.float32]


class Verification(Struct, frozen=True):
    """What reading some tokens in one run, as drafts are verified, does to their logits and probabilities, beside
    decoding one after the other: the largest that was measured. 0 where it is the same bit for bit.
    """

    logits: float = 0.0
    nats: float = 0.0


class Proof(Struct, frozen=True):
    """What was measured here, the largest of each: ``rows``, what place and neighbours of a row do to its logits (0:
    not a bit, in batches of two and more); ``lone``, what being alone in a run does to them, and ``lone_nats`` to its
    probabilities. ``switch``: the widest mask with short rope factors, 0 if that never matters.
    """

    rows: float = 0.0
    lone: float = 0.0
    lone_nats: float = 0.0
    switch: int = 0

    def joined(self, other: Proof) -> Proof:
        """What holds for both."""
        return Proof(
            rows=_largest([self.rows, other.rows]),
            lone=_largest([self.lone, other.lone]),
            lone_nats=_largest([self.lone_nats, other.lone_nats]),
            switch=max(self.switch, other.switch),
        )


def prove_all(runner: Runner, pool: Pool, decoder: Decoder, slice_length: int) -> Proof:
    """Prove what this graph gives reason for.

    Raises:
        Declined: a proof fails.
    """
    vocab_size = decoder.vocab_size
    proof = prove(runner, pool, slice_length=slice_length, vocab_size=vocab_size)
    if decoder.window:
        more = prove_window(runner, pool, slice_length=slice_length, vocab_size=vocab_size, window=decoder.window)
        proof = proof.joined(more)
    if not 0 < decoder.rope_switch < pool.length:
        return proof
    width = decoder.rope_switch + 1
    more = prove_switch(runner, pool, slice_length=slice_length, vocab_size=vocab_size, width=width)
    return proof.joined(more).joined(Proof(switch=decoder.rope_switch))


def prove(runner: Runner, pool: Pool, *, slice_length: int, vocab_size: int, past: int = 0, width: int = 0) -> Proof:
    """Read at once and in slices, decode alone, in a pair and among many, and compare; the long sequence begins behind
    ``past`` tokens of nothing.

    Keys and values of zeros are tokens like any other, and as long as they are only read they take no memory: so what
    happens past a sliding window is proved without reading a window full of tokens.

    Raises:
        Declined: a row depends on its neighbours, on its slot, or on how its prompt was cut.
    """
    where = f", past {past} tokens" if past else ", with long rope factors" if width else ""
    random = np.random.Generator(np.random.PCG64(7))
    one, other = (random.integers(0, vocab_size, size).tolist() for size in (LONG, SHORT))
    trial = _Measurement(runner, pool, slice_length, width)
    whole = runner.prefill(pool.slots - 1, past, one, width, last=True)[-1].copy()
    sliced = trial.read(0, past, one)
    apart = divergence(whole, sliced)
    if not apart <= MAX_DIVERGENCE:
        raise Declined(f"reading a prompt in slices changes it here (by {apart:.3g} nats{where})")
    if pool.slots == 1:
        return Proof()  # never in company
    # Copying would write what was never written, where the long sequence begins behind nothing.
    known = 0.0 if past else trial.known_beginning(one, sliced)
    if not known <= MAX_DIFFERENCE:
        raise Declined(f"a prompt whose beginning is known is read differently here (by {known:.3g}{where})")
    runner.prefill(1, 0, other, width, last=True)
    lengths = [past + LONG, SHORT, MIDDLE][: 2 if past else min(3, pool.slots)]
    if len(lengths) == 3:
        pool.copy(0, 2, MIDDLE)
    proof = trial.rows([one[0], other[0], one[1]], lengths, 2 if past else pool.slots)
    if not proof.rows <= MAX_DIFFERENCE:
        raise Declined(f"requests in one batch change each other here (by {proof.rows:.3g}{where})")
    return proof.joined(Proof(rows=known))


def prove_verification(runner: Runner, pool: Pool, *, slice_length: int, vocab_size: int) -> Verification:
    """Read tokens in runs of every length that verifies a draft, decode the same ones, and compare.

    Runs of one length differing from decoding is enough to know that nothing is equal bit for bit; what is far off is
    never used (:func:`agent.engine.batched.independence.settle_drafting`).
    """
    random = np.random.Generator(np.random.PCG64(17))
    tokens = random.integers(0, vocab_size, LONG + VERIFIED).tolist()
    trial = _Measurement(runner, pool, slice_length, 0)
    trial.read(0, 0, tokens[:LONG])
    text = tokens[LONG:]
    decoded = [[trial.decode(token, LONG + offset, paired=False) for offset, token in enumerate(text)]]
    if pool.slots > 1:
        decoded.append([trial.decode(token, LONG + offset, paired=True) for offset, token in enumerate(text)])
    found = Verification()
    for count in range(VERIFIED, 1, -1):
        rows = runner.prefill(0, LONG, text[:count])
        steps = [_Step(row, pool.written(0, LONG + offset)) for offset, row in enumerate(rows)]
        pairs = [pair for one in decoded for pair in zip(steps, one, strict=False)]
        logits = _largest([found.logits, *(step.apart(other) for step, other in pairs)])
        nats = _largest([found.nats, *(abs(divergence(other.row, step.row)) for step, other in pairs)])
        found = Verification(logits, nats)
        if logits:
            break
    return found


class _Step(NamedTuple):
    """What a run gave for one row: its logits, and the keys and values that it wrote."""

    row: Row
    kept: NDArray[Any]

    def apart(self, other: _Step) -> float:
        """The largest difference of the logits; 0 only where keys and values are the same bit for bit as well."""
        found = float(np.abs(self.row - other.row).max())
        return found if found or np.array_equal(self.kept, other.kept) else LEAST_DIFFERENCE


class _Measurement:
    """Runs what is to be compared."""

    def __init__(self, runner: Runner, pool: Pool, slice_length: int, width: int) -> None:
        self._runner = runner
        self._pool = pool
        self._slice_length = slice_length
        self._width = width

    def read(self, slot: int, past: int, tokens: list[int]) -> Row:
        """Logits of the last of ``tokens``, read in slices."""
        last: list[Row] = []
        for start in range(0, len(tokens), self._slice_length):
            piece = tokens[start : start + self._slice_length]
            last = [self._runner.prefill(slot, past + start, piece, self._width, last=True)[-1].copy()]
        return last[0]

    def decode(self, token: int, past: int, *, paired: bool) -> _Step:
        """One more token in the first slot, alone or in a pair."""
        run = self._runner.decode_padded if paired else self._decode_alone
        row = run(0, token, past, self._width)[0].copy()
        return _Step(row, self._pool.written(0, past))

    def _decode_alone(self, slot: int, token: int, past: int, width: int) -> NDArray[np.float32]:
        return self._runner.decode(slot, [token], [past], width)

    def known_beginning(self, tokens: list[int], expected: Row) -> float:
        """How far the last slice is off in another slot, behind what was copied there, as a remembered beginning is."""
        last, known = self._pool.slots - 1, len(tokens) - self._slice_length
        self._pool.copy(0, last, known)
        row = self.read(last, known, tokens[known:])
        there, here = (self._pool.take(slot, len(tokens)) for slot in (last, 0))
        return _Step(row, there).apart(_Step(expected, here))

    def rows(self, tokens: list[int], lengths: list[int], slots: int) -> Proof:
        """One more token for each of the sequences in the first slots: alone, in a pair, and in batches of every size
        in which the same sequences stand at every place.
        """
        alone, paired = [], []
        for slot, length in enumerate(lengths):
            row = self._runner.decode(slot, [tokens[slot]], [length], self._width)[0].copy()
            alone.append(_Step(row, self._pool.written(slot, length)))
            row = self._runner.decode_padded(slot, tokens[slot], length, self._width)[0].copy()
            paired.append(_Step(row, self._pool.written(slot, length)))
        kinds = [slot % len(lengths) for slot in range(slots)]
        for slot, kind in list(enumerate(kinds))[len(lengths) :]:
            self._pool.copy(kind, slot, lengths[kind])
        among = [0.0]
        for count in range(2, slots + 1):
            batch = kinds[:count]
            pasts = [lengths[kind] for kind in batch]
            rows = self._runner.decode(0, [tokens[kind] for kind in batch], pasts, self._width)
            steps = [_Step(row, self._pool.written(slot, pasts[slot])) for slot, row in enumerate(rows)]
            among += [step.apart(paired[kind]) for step, kind in zip(steps, batch, strict=True)]
        both = list(zip(paired, alone, strict=True))
        return Proof(
            rows=_largest(among),
            lone=_largest([step.apart(lone) for step, lone in both]),
            lone_nats=_largest([abs(divergence(step.row, lone.row)) for step, lone in both]),
        )


def _largest(values: list[float]) -> float:
    """NaN if one is."""
    return float(np.max(values))


def prove_window(runner: Runner, pool: Pool, *, slice_length: int, vocab_size: int, window: int) -> Proof:
    """The same across the edge of a sliding window, if a request can get there.

    Raises:
        Declined: see :func:`prove`.
    """
    past = max(0, window - LONG // 2) // slice_length * slice_length
    if past and past + LONG < pool.length:
        pool.forget()  # whatever was there is zeros again
        return prove(runner, pool, slice_length=slice_length, vocab_size=vocab_size, past=past)
    return Proof()


def prove_switch(runner: Runner, pool: Pool, *, slice_length: int, vocab_size: int, width: int) -> Proof:
    """The same with a mask so wide that the long rope factors are taken, and that they are others than the short ones.

    Raises:
        Declined: the mask's width changes nothing; or see :func:`prove`.
    """
    tokens = np.random.Generator(np.random.PCG64(13)).integers(0, vocab_size, SHORT).tolist()
    short = runner.prefill(0, 0, tokens, last=True)[-1].copy()
    if np.array_equal(short, runner.prefill(0, 0, tokens, width, last=True)[-1]):
        raise Declined("its rope factors do not switch where its graph says")
    return prove(runner, pool, slice_length=slice_length, vocab_size=vocab_size, width=width)


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
        start + slice_length: runner.prefill(0, start, tokens[start : start + slice_length], last=True)[-1].copy()
        for start in range(0, total, slice_length)
    }
    kept = pool.take(0, total)
    for end in range(2 * slice_length, total + 1, slice_length):
        begin = max(0, end - width)
        row = runner.prefill(0, begin, tokens[begin:end], last=True)[-1]
        if not (np.array_equal(row, rows[end]) and np.array_equal(pool.take(0, end), kept[:, :, :end])):
            return slice_length
    return width


def divergence(one: Row, other: Row) -> float:
    """Kullback-Leibler divergence of two rows of logits, in nats; NaN if one has a NaN."""
    first, second = log_softmax(one), log_softmax(other)
    return float((np.exp(first) * (first - second)).sum())
