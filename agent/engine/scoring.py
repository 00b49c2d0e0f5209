"""What a canary's score is made of; numbers in, numbers out, but for the one who asks a Generator for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.interface import CanaryScore
from agent.engine.sampling import log_softmax

SCORE_SLICE = 64
"""Tokens of a canary read at a time, as the packager does: with INT8 activations the length shifts the logits."""


def token_losses(logits: NDArray[np.float32], following: Sequence[int]) -> list[float]:
    """NLL in nats of the token that follows each row of ``logits`` ``[tokens, vocab]``; NaN where a row has one."""
    rows = logits[: len(following)]
    losses = -log_softmax(rows)[np.arange(len(following)), list(following)]
    losses[~np.isfinite(rows).all(axis=-1)] = np.nan
    return [float(loss) for loss in losses]


def canary_score(losses: Sequence[float]) -> CanaryScore:
    """Their mean, or "not finite" if one is not."""
    finite = bool(np.isfinite(losses).all())
    return CanaryScore(float(np.mean(losses)) if finite else 0.0, len(losses), finite)


def generator_losses(generator: Any, ids: list[int], first: int, size: int) -> list[float] | None:
    """NLL of each of ``ids[first:]``, ``size`` tokens at a time; None if the graph shows the last logits alone."""
    filled = 0
    losses: list[float] = []
    while filled < len(ids) - 1:
        end = min(filled + size, len(ids) - 1)
        if filled < first - 1:
            end = min(end, first - 1)
        generator.append_tokens(np.array(ids[filled:end], dtype=np.int32))
        if filled >= first - 1:
            logits = generator.get_output("logits")[0]
            if len(logits) < end - filled:
                return None
            losses.extend(token_losses(logits, ids[filled + 1 : end + 1]))
        filled = end
    return losses


def picture_losses(generator: Any, text: Sequence[int]) -> list[float]:
    """NLL of each token of ``text``, one at a time, by a generator that has read the prompt before it."""
    losses: list[float] = []
    for number, token in enumerate(text):
        losses += token_losses(np.asarray(generator.get_output("logits"))[0, -1:], [token])
        if number + 1 < len(text):
            generator.append_tokens(np.array([token], dtype=np.int32))
    return losses
