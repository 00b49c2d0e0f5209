"""Chooses the next token from one row of logits. Pure: numpy in, a token id out.

What a request gets depends on its own logits, parameters and seed alone, never on its neighbours in a batch: every
request owns its random stream and draws exactly one number for each sampled token.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from agent.engine.interface import Generation

Row = NDArray[np.float32]

BLOCK = 256
"""Width of the blocks whose maxima bound the k-th largest logit: 192 maxima stand for a 49k vocabulary."""

WEIGHT_BITS = 20
"""Of a float32 between 0 and 1, what is left of these many bits gives about a thousand bins in order of size."""

UPDATABLE = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "logit_bias",
        "min_tokens",
        "max_tokens",
        "stops",
    }
)
"""Fields of a :class:`Generation` that may change while it runs."""


class Sampler:
    """The sampling state of one request: its tokens so far, its n-grams and its random stream."""

    def __init__(self, generation: Generation, prompt: Iterable[int], eos: tuple[int, ...], *, choice: int = 0) -> None:
        self.generation = generation
        self._eos = eos
        self._generated = 0
        self._random = np.random.Generator(np.random.PCG64(_stream(generation.seed, choice)))
        self._uses = Uses()
        self._tokens: list[int] = list(prompt)
        self._seen: set[int] = set(self._tokens)
        self._follow: dict[tuple[int, ...], set[int]] = {}
        self._index_ngrams()

    def change(self, generation: Generation) -> None:
        """Use other parameters from the next token on; the random stream goes on."""
        ngram = self.generation.no_repeat_ngram_size
        self.generation = generation
        if generation.no_repeat_ngram_size != ngram:
            self._index_ngrams()

    def choose(self, logits: Row, mask: NDArray[np.bool_] | None = None) -> int:
        """The next token id. ``logits`` ``[vocab]`` is not changed; ``mask`` ``[vocab]`` is True where allowed."""
        if self._plain(mask):
            token = int(logits.argmax())
            if token not in self._banned():
                return token
        row = self._shape(logits, mask)
        if self.generation.temperature <= 0:
            return int(row.argmax())
        return self._draw(row)

    def accept(self, token: int) -> None:
        """The token was taken into the sequence."""
        self._generated += 1
        self._uses.add(token)
        self._tokens.append(token)
        self._seen.add(token)
        size = self.generation.no_repeat_ngram_size
        if size and len(self._tokens) >= size:
            self._follow.setdefault(tuple(self._tokens[-size:-1]), set()).add(token)

    def _index_ngrams(self) -> None:
        self._follow = {}
        size = self.generation.no_repeat_ngram_size
        if size:
            for end in range(size - 1, len(self._tokens)):
                key = tuple(self._tokens[end - size + 1 : end])
                self._follow.setdefault(key, set()).add(self._tokens[end])

    def _plain(self, mask: NDArray[np.bool_] | None) -> bool:
        """Greedy, and only bans can change what is best: no copy of the row is needed while they do not."""
        return self.generation.temperature <= 0 and mask is None and not self._penalises()

    def _penalises(self) -> bool:
        """Whether bias or penalties change the logits."""
        wanted = self.generation
        return bool(
            wanted.logit_bias or wanted.repetition_penalty != 1.0 or wanted.presence_penalty or wanted.frequency_penalty
        )

    def _shape(self, logits: Row, mask: NDArray[np.bool_] | None) -> Row:
        """Bias, penalties and bans, in the order of Hugging Face's processors; presence and frequency come last of the
        penalties, as in vLLM.
        """
        wanted = self.generation
        banned = self._banned()
        if not (self._penalises() or banned or mask is not None):
            return logits
        row = logits.copy()
        for token, bias in wanted.logit_bias.items():
            row[token] += bias
        if wanted.repetition_penalty != 1.0 and self._seen:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            values = row[seen]
            penalty = np.float32(wanted.repetition_penalty)
            row[seen] = np.where(values > 0, values / penalty, values * penalty)
        if wanted.presence_penalty or wanted.frequency_penalty:
            used, counts = self._uses.tokens, self._uses.counts
            row[used] -= np.float32(wanted.presence_penalty) + np.float32(wanted.frequency_penalty) * counts
        if banned:
            self._ban(row, banned, mask)
        if mask is not None:
            row[~mask] = -np.inf
        return row

    def _banned(self) -> list[int]:
        wanted = self.generation
        banned: list[int] = []
        size = wanted.no_repeat_ngram_size
        if size:
            key = tuple(self._tokens[len(self._tokens) - size + 1 :]) if size > 1 else ()
            banned.extend(self._follow.get(key, ()))
        if self._generated < wanted.min_tokens:
            banned.extend(self._eos)
        return banned

    @staticmethod
    def _ban(row: Row, banned: list[int], mask: NDArray[np.bool_] | None) -> None:
        """Ban, unless nothing would be left of what a grammar allows: the grammar goes first."""
        if mask is not None:
            left = mask.copy()
            left[banned] = False
            if not left.any():
                return
        row[banned] = -np.inf

    def _draw(self, row: Row) -> int:
        """Top-k first, then top-p of what it leaves, then min-p, as Hugging Face's processors do."""
        wanted = self.generation
        highest = float(row.max())
        if not np.isfinite(highest):
            return int(row.argmax())  # a NaN, which the caller looks for, or nothing to choose from
        scale = max(wanted.temperature, 1e-5)
        tokens: NDArray[np.int64] | None = None
        if 0 < wanted.top_k < len(row):
            tokens, row = best(row, wanted.top_k)
        weights = np.exp((row - highest) / scale)
        if wanted.top_p < 1:
            inside = nucleus(row, weights, wanted.top_p)
            tokens = inside if tokens is None else tokens[inside]
            weights = weights[inside]
        if wanted.min_p > 0:
            likely = np.flatnonzero(weights >= wanted.min_p)  # the highest weighs 1
            tokens = likely if tokens is None else tokens[likely]
            weights = weights[likely]
        position = drawn(weights, self._random.random())
        return position if tokens is None else int(tokens[position])


def _stream(seed: int | None, choice: int) -> np.random.SeedSequence:
    """Where random numbers begin: elsewhere for every answer to a request, for the first where they always did."""
    return np.random.SeedSequence(None if seed is None else seed % 2**64, spawn_key=(choice,) if choice else ())


class Uses:
    """How often each token was generated: what presence and frequency penalties go by, the prompt apart."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._tokens = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Each once."""
        return self._tokens[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._slots)]

    def add(self, token: int) -> None:
        """It was generated once more."""
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._tokens[slot] = token
        self._counts[slot] += 1


def drawn(weights: Row, share: float) -> int:
    """The place at which ``share`` (0 to 1) of the sum of ``weights`` is passed; never one that weighs nothing.

    First among blocks, then inside one: adding up all of a vocabulary one by one takes ten times as long.
    """
    starts = np.arange(0, len(weights), BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    aim = share * blocks[-1]
    block = min(int(np.searchsorted(blocks, aim, side="right")), len(blocks) - 1)
    first = block * BLOCK
    inside = np.cumsum(weights[first : first + BLOCK], dtype=np.float64)
    rest = aim - (float(blocks[block - 1]) if block else 0.0)
    position = min(int(np.searchsorted(inside, rest, side="right")), len(inside) - 1)
    while weights[first + position] == 0 and position > 0:  # sums were rounded
        position -= 1
    return first + position


def nucleus(row: Row, weights: Row, top_p: float) -> NDArray[np.int64]:
    """Places of the fewest largest logits of ``row`` whose ``weights`` (0 to 1) reach ``top_p`` of all, largest first.

    Only what may be among them is sorted. All that weigh less than their equal share of the rest weigh less than the
    rest together, so the others reach ``top_p``; and the bits of weights, read as integers, are in the order of their
    size, so sums of coarse bins tell how small the smallest can be.
    """
    total = float(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)).sum(dtype=np.float64))
    aim = top_p * total
    found = np.flatnonzero(weights >= (total - aim) / len(weights))
    likely = weights[found]
    bins = likely.view(np.int32) >> WEIGHT_BITS
    from_top = np.cumsum(np.bincount(bins, weights=likely)[::-1])
    lowest = len(from_top) - 2 - int(np.searchsorted(from_top, aim))  # one lower: sums were rounded
    found = found[bins >= lowest]
    found = found[np.argsort(-row[found], kind="stable")]
    reached = np.cumsum(weights[found], dtype=np.float64)
    return found[: int(np.searchsorted(reached, aim)) + 1]


def best(row: Row, count: int) -> tuple[NDArray[np.int64], Row]:
    """The ``count`` largest finite entries, best first, ties by lower id.

    The ``count``-th largest block maximum is a floor under the ``count``-th largest entry, so only what reaches it
    has to be sorted: a tenth of what a partition of the whole row costs.
    """
    whole = len(row) - len(row) % BLOCK
    maxima = row[:whole].reshape(-1, BLOCK).max(axis=1) if whole else row[:0]
    if count <= len(maxima):
        floor = np.partition(maxima, len(maxima) - count)[len(maxima) - count]
        blocks = np.flatnonzero(maxima >= floor)
        inside = np.flatnonzero(row[:whole].reshape(-1, BLOCK)[blocks] >= floor)
        found = blocks[inside // BLOCK] * BLOCK + inside % BLOCK
        if whole < len(row):
            found = np.concatenate([found, whole + np.flatnonzero(row[whole:] >= floor)])
    else:
        found = np.arange(len(row))
    values = row[found]
    order = np.argsort(-values, kind="stable")[:count]
    order = order[np.isfinite(values[order])]
    if not len(order):
        order = np.array([int(values.argmax())])
    return found[order], values[order]


def log_softmax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities along the last axis, in double precision."""
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    shifted: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return shifted
