"""Rounding a matrix so that its products change least: GPTQ (Frantar et al. 2022, arxiv.org/abs/2210.17323).

Columns are rounded one after the other, those that are multiplied with the largest inputs first; what rounding one of
them changes in the output is made up for by the columns not yet rounded, as the inputs' second moments tell. Scales and
zero points are fixed before, so blocks keep their order whatever the order of rounding.
"""

from __future__ import annotations

import torch

from packager.calibration.grid import Grid, choose_grid

DAMPING = 0.01
"""Part of the mean diagonal added to it: keeps the factorisation sound where inputs hardly vary."""

STRIDE = 64
"""Columns rounded before the rest of the matrix hears of it: one large product instead of many small ones."""


def round_matrix(weight: torch.Tensor, moments: torch.Tensor, *, symmetric: bool) -> tuple[torch.Tensor, Grid]:
    """Levels ``[rows, columns]`` (zero point not taken off) for ``weight``, and their grid.

    ``moments`` is ``inputᵀ · input`` over the calibration text, ``[columns, columns]``.
    """
    hessian = moments.double()
    diagonal = hessian.diagonal()
    # An input that is always zero: its weights matter to nobody, and its row must not be singular.
    diagonal[diagonal == 0] = diagonal.mean().clamp(min=1e-6)
    grid = choose_grid(weight, diagonal.float(), symmetric=symmetric)
    order = torch.argsort(diagonal, descending=True)
    hessian = hessian[order][:, order]
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    levels = _round_in_order(
        weight[:, order],
        factor,
        grid.spread(grid.scale)[:, order],
        grid.spread(grid.zero)[:, order],
        (grid, None if grid.pinned is None else grid.pinned[:, order]),
    )
    return levels[:, torch.argsort(order)], grid


def _round_in_order(
    weight: torch.Tensor,
    factor: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bounds: tuple[Grid, torch.Tensor | None],
) -> torch.Tensor:
    grid, pinned = bounds
    levels = torch.empty_like(weight)
    columns = weight.shape[1]
    for start in range(0, columns, STRIDE):
        end = min(start + STRIDE, columns)
        # Columns as rows: each step then works on memory that lies together.
        left, corner = weight[:, start:end].t().contiguous(), factor[start:end, start:end]
        errors = torch.empty_like(left)
        for number in range(end - start):
            scale, zero = scales[:, start + number], zeros[:, start + number]
            level = (torch.round(left[number] / scale) + zero).clamp_(grid.low, grid.high)
            if pinned is not None:
                level = torch.where(pinned[:, start + number], torch.full_like(level, grid.low), level)
            levels[:, start + number] = level
            errors[number] = (left[number] - (level - zero) * scale) / corner[number, number]
            left[number:].sub_(corner[number, number:, None] * errors[number][None])
        if end < columns:
            weight[:, end:] -= errors.t() @ factor[start:end, end:]
    return levels
