"""What a canary's score is made of. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.engine.sampling import log_softmax
from agent.engine.stepping import CanaryScore

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
