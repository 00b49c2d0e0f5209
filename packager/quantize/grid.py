"""Scales and zero points of blocks of weights, chosen by the error that matters.

A weight is stored as ``q`` in 4 bits and read as ``(q - zero) * scale``, a block of them sharing scale and zero.
Spreading the grid over a block's whole range is not best: a few percent less clips the largest weight a little and
rounds all the others finer. Which range is best is measured, each weight's squared error counted by the mean square of
the input that it is multiplied with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 32
LEVELS = 16
EPS = 1e-8
"""Scale of a block of zeros: any number that can be divided by."""

PIECE_ELEMENTS = 2**16
"""Weights that are looked at in one go: a few copies of them fit into a core's cache."""

SHRINKS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.78, 0.74, 0.7)
"""Parts of a block's range that are tried."""


@dataclass
class Grid:
    """``scale`` and ``zero``, ``[rows, blocks, 1]``; ``pinned`` marks weights that must stay on the lowest level.

    In a symmetric grid the weight with the largest magnitude of each block is pinned: whoever quantises the rounded
    matrix again by its largest magnitudes, as the model builder does with an lm_head, finds this very grid.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    low: int
    pinned: torch.Tensor | None
    block: int = BLOCK

    @property
    def high(self) -> int:
        """The highest level."""
        return self.low + LEVELS - 1

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """``[rows, blocks, 1]`` as ``[rows, columns]``."""
        return values.expand(-1, -1, self.block).reshape(len(values), -1)


def choose_grid(
    weight: torch.Tensor,
    importance: torch.Tensor,
    *,
    symmetric: bool,
    block: int = BLOCK,
    shrinks: tuple[float, ...] = SHRINKS,
) -> Grid:
    """The best of ``shrinks`` for each block of ``weight`` ``[rows, columns]``; ``importance`` is by column."""
    counts = importance.to(weight.dtype).view(1, -1, block)
    low = -LEVELS // 2 if symmetric else 0
    pieces = [
        _choose(rows.reshape(len(rows), -1, block), counts, shrinks, symmetric=symmetric)
        for rows in weight.split(max(1, PIECE_ELEMENTS // weight.shape[1]))
    ]
    pinned = None
    if symmetric:
        blocks = weight.reshape(len(weight), -1, block)
        largest = blocks.abs().argmax(-1, keepdim=True)
        pinned = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, largest, value=True).reshape(weight.shape)
    scale, zero = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return Grid(scale=scale, zero=zero, low=low, pinned=pinned, block=block)


def _choose(
    blocks: torch.Tensor, counts: torch.Tensor, shrinks: tuple[float, ...], *, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best scale and zero of each of ``blocks``."""
    low = -LEVELS // 2 if symmetric else 0
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for shrink in shrinks:
        scale, zero = _symmetric(blocks, shrink) if symmetric else _asymmetric(blocks, shrink)
        read = torch.div(blocks, scale).round_().add_(zero).clamp_(low, low + LEVELS - 1).sub_(zero).mul_(scale)
        error = read.sub_(blocks).square_().mul_(counts).sum(-1, keepdim=True)
        if best is None:
            best = error, scale, zero
        else:
            better = error < best[0]
            best = (
                torch.where(better, error, best[0]),
                torch.where(better, scale, best[1]),
                torch.where(better, zero, best[2]),
            )
    assert best is not None
    return best[1], best[2]


def _symmetric(blocks: torch.Tensor, shrink: float) -> tuple[torch.Tensor, torch.Tensor]:
    largest = torch.gather(blocks, -1, blocks.abs().argmax(-1, keepdim=True))
    scale = _nonzero(_shorten(largest * (-2 * shrink / LEVELS)))
    return scale, torch.zeros_like(scale)


def _shorten(scale: torch.Tensor) -> torch.Tensor:
    """Eight significant bits: eleven with those of a level, so that half precision holds every weight exactly."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.round(mantissa * 256) / 256, exponent)


def _asymmetric(blocks: torch.Tensor, shrink: float) -> tuple[torch.Tensor, torch.Tensor]:
    top = blocks.amax(-1, keepdim=True).clamp(min=0) * shrink
    bottom = blocks.amin(-1, keepdim=True).clamp(max=0) * shrink
    scale = _nonzero((top - bottom) / (LEVELS - 1))
    return scale, torch.round(-bottom / scale).clamp(0, LEVELS - 1)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.full_like(scale, EPS), scale)
