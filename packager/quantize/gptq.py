"""Rounding a matrix so that its products change least: GPTQ (Frantar et al. 2022, arxiv.org/abs/2210.17323).

Columns are rounded one after the other, those that are multiplied with the largest inputs first; what rounding one of
them changes in the output is made up for by the columns not yet rounded, as the inputs' second moments tell. Scales and
zero points are fixed before, so blocks keep their order whatever the order of rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from packager.quantize.grid import BLOCK, SHRINKS, Grid, choose_grid

DAMPING = 0.01
"""Part of the mean diagonal added to it: keeps the factorisation sound where inputs hardly vary."""

TABLE_DAMPING = 0.1
"""The same for a table that is read as embedding too, where every input counts alike."""

STRIDE = 64
"""Columns rounded before the rest of the matrix hears of it: one large product instead of many small ones."""


@dataclass(frozen=True)
class Compensation:
    """What rounding has to know of a matrix's inputs; the same for all matrices that have them, and for all rows.

    ``importance`` is the sum of squares of each input. ``spans`` are the columns in the order of rounding, cut into
    pieces whose errors are made up for within them, each with the upper factor of its inverse moments.
    """

    importance: torch.Tensor
    spans: list[tuple[torch.Tensor, torch.Tensor]]


def plan_compensation(
    importance: torch.Tensor, moments_of: Callable[[torch.Tensor], torch.Tensor], *, span: int | None = None
) -> Compensation:
    """Order and factors for inputs of this ``importance``.

    ``moments_of`` gives ``inputᵀ · input`` of some columns. With ``span``, no more columns than that make up for each
    other, so that time and memory grow with a matrix's width, not with its cube.
    """
    importance = importance.double()
    # An input that is always zero: its weights matter to nobody, and its row must not be singular.
    silent = importance == 0
    importance[silent] = importance.mean().clamp(min=1e-6)
    order = torch.argsort(importance, descending=True, stable=True)
    spans = []
    for columns in order.split(span or len(order)):
        moments = moments_of(columns).double()
        moments.diagonal().copy_(importance[columns] + DAMPING * importance.mean())
        spans.append((columns, _factor(moments)))
    return Compensation(importance.float(), spans)


def _factor(moments: torch.Tensor) -> torch.Tensor:
    """The upper ``U`` with ``Uᵀ · U = moments⁻¹``, from one factorisation, turned round twice."""
    lower = torch.linalg.cholesky(moments.flip(0, 1)).float()
    return torch.linalg.solve_triangular(lower, torch.eye(len(lower)), upper=False).flip(0, 1)


def round_matrix(weight: torch.Tensor, moments: torch.Tensor, *, symmetric: bool) -> tuple[torch.Tensor, Grid]:
    """Levels ``[rows, columns]`` (zero point not taken off) for ``weight``, and their grid.

    ``moments`` is ``inputᵀ · input`` over the calibration text, ``[columns, columns]``.
    """
    compensation = plan_compensation(moments.diagonal().clone(), lambda columns: moments[columns][:, columns])
    return round_rows(weight, compensation, symmetric=symmetric)


def round_rows(
    weight: torch.Tensor,
    compensation: Compensation,
    *,
    symmetric: bool,
    block: int = BLOCK,
    shrinks: tuple[float, ...] = SHRINKS,
) -> tuple[torch.Tensor, Grid]:
    """Levels of ``weight``, all or some rows of a matrix, and their grid of ``block`` columns a scale; zeros fill up
    the last block of a row.
    """
    with _one_thread():
        return _round_rows(weight, compensation, symmetric=symmetric, block=block, shrinks=shrinks)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Rounding is thousands of steps too short to be shared: a second thread spends its time waiting, and burns it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _round_rows(
    weight: torch.Tensor, compensation: Compensation, *, symmetric: bool, block: int, shrinks: tuple[float, ...]
) -> tuple[torch.Tensor, Grid]:
    short = -weight.shape[1] % block
    grid = choose_grid(
        torch.nn.functional.pad(weight, (0, short)),
        torch.nn.functional.pad(compensation.importance, (0, short)),
        symmetric=symmetric,
        block=block,
        shrinks=shrinks,
    )
    scales, zeros = grid.spread(grid.scale), grid.spread(grid.zero)
    levels = torch.empty_like(weight)
    for columns, factor in compensation.spans:
        pinned = None if grid.pinned is None else grid.pinned[:, columns].t().contiguous()
        # Columns as rows: each step then works on memory that lies together.
        parts = [values[:, columns].t().contiguous() for values in (weight, scales, zeros)]
        levels[:, columns] = _round_in_order(parts[0], factor, parts[1], parts[2], (grid, pinned)).t()
    return levels, grid


def _round_in_order(
    left: torch.Tensor,
    factor: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bounds: tuple[Grid, torch.Tensor | None],
) -> torch.Tensor:
    """Levels of the columns ``left`` ``[columns, rows]``, which is used up."""
    grid, pinned = bounds
    levels = torch.empty_like(left)
    count = len(left)
    for start in range(0, count, STRIDE):
        end = min(start + STRIDE, count)
        errors = torch.empty_like(left[start:end])
        for number in range(start, end):
            value, scale, zero = left[number], scales[number], zeros[number]
            level = torch.round(value / scale).add_(zero).clamp_(grid.low, grid.high)
            if pinned is not None:
                level.masked_fill_(pinned[number], grid.low)
            levels[number] = level
            error = torch.sub(value, level.sub_(zero).mul_(scale), out=errors[number - start])
            error.div_(factor[number, number])
            left[number + 1 : end].addr_(factor[number, number + 1 : end], error, alpha=-1)
        if end < count:
            left[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    return levels
