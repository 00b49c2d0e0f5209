"""Comparing two models' logits at the same positions. Pure arithmetic on rows ``[positions, vocabulary]``.

Kullback-Leibler divergence is ``sum p (log p - log q)`` in nats with the source as ``p``; agreement is how often both
have the same most likely token; perplexity is ``exp`` of the mean negative log-likelihood of the text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]

LEAST_LOG = -60.0
"""Below this a probability is nothing in fp32: half-precision infinities must not become NaN when multiplied by it."""


def log_softmax(logits: Rows) -> Rows:
    """Natural logarithms of the probabilities, row by row."""
    top = logits.max(axis=-1, keepdims=True)
    shifted = logits - top
    result: Rows = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def divergences(source: Rows, bundle: Rows) -> npt.NDArray[np.float64]:
    """KL divergence of each row; both sides are logarithms of probabilities."""
    source = np.maximum(source, LEAST_LOG)
    weights = np.exp(source)
    result: npt.NDArray[np.float64] = (weights * (source - np.maximum(bundle, LEAST_LOG))).sum(
        axis=-1, dtype=np.float64
    )
    # Rounding the source to half precision can leave a sum a hair below zero.
    return np.maximum(result, 0.0)


@dataclass
class Comparison:
    """What is gathered, a few rows at a time: memory does not grow with the vocabulary."""

    source_losses: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agreed: int = 0

    def add(self, source: Rows, bundle: Rows, tokens: npt.NDArray[np.int64]) -> None:
        """Rows of log-probabilities that predict ``tokens``; ids beyond the shorter vocabulary are padding."""
        width = min(source.shape[-1], bundle.shape[-1])
        source, bundle = source[:, :width], bundle[:, :width]
        rows = np.arange(len(tokens))
        self.source_losses += (-source[rows, tokens]).astype(float).tolist()
        self.losses += (-bundle[rows, tokens]).astype(float).tolist()
        self.kl += divergences(source, bundle).tolist()
        self.agreed += int((source.argmax(-1) == bundle.argmax(-1)).sum())

    def summary(self) -> dict[str, Any]:
        """The numbers, rounded so far that threads cannot change them."""
        count = len(self.losses)
        perplexity, source = math.exp(sum(self.losses) / count), math.exp(sum(self.source_losses) / count)
        return {
            "tokens": count,
            "perplexity": _round(perplexity),
            "source_perplexity": _round(source),
            "perplexity_ratio": _round(perplexity / source),
            "kl": _round(sum(self.kl) / count),
            "top1_agreement": _round(self.agreed / count),
        }


def _round(value: float) -> float:
    return float(f"{value:.5g}")
