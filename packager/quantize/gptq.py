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

STRIDES = (16, 64)
"""Columns rounded before those next to them hear of it, and before the rest of the matrix does: few large products
instead of many small ones.
"""


@dataclass(frozen=True)
class Compensation:
    """What rounding has to know of a matrix's inputs; the same for all matrices that have them, and for all rows.

    ``importance`` is the sum of squares of each input. ``spans`` are the columns in the order of rounding, cut into
    pieces whose errors are made up for within them, each with the upper factor of its inverse moments, whose rows are
    divided by the diagonal: what the columns that follow get of one column's error.
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
    """The upper ``U`` with ``Uᵀ · U = moments⁻¹``, from one factorisation, turned round twice, its diagonal ones."""
    lower = torch.linalg.cholesky(moments.flip(0, 1)).float()
    upper = torch.linalg.solve_triangular(lower, torch.eye(len(lower)), upper=False).flip(0, 1)
    return upper / upper.diagonal()[:, None]


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
    # Columns as rows: each step then works on memory that lies together.
    left = weight.t().contiguous()
    levels = torch.empty_like(left)
    scales, zeros = (list(values.squeeze(-1).t().contiguous()) for values in (grid.scale, grid.zero))
    pinned = None if grid.pinned is None else grid.pinned.t()
    for columns, factor in compensation.spans:
        blocks = (columns // block).tolist()
        bounds = Bounds(
            scales=[scales[number] for number in blocks],
            zeros=None if symmetric else [zeros[number] for number in blocks],
            low=grid.low,
            high=grid.high,
            pinned=None if pinned is None else list(pinned[columns]),
        )
        levels[columns] = _round_in_order(left[columns], factor, bounds)
    return levels.t().contiguous(), grid


@dataclass(frozen=True)
class Bounds:
    """What each column of a span is rounded with, in their order; ``zeros`` None where all are zero."""

    scales: list[torch.Tensor]
    zeros: list[torch.Tensor] | None
    low: int
    high: int
    pinned: list[torch.Tensor] | None


def _round_in_order(left: torch.Tensor, factor: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """Levels of the columns ``left`` ``[columns, rows]``, which is used up."""
    levels, errors = torch.empty_like(left), torch.empty_like(left)
    columns, made, wrong = list(left), list(levels), list(errors)  # views, since taking one out at a time costs as much

    def tell(start: int, end: int, until: int) -> None:
        """Let the columns from ``end`` on make up for the errors of those before."""
        if end < until:
            left[end:until].addmm_(factor[start:end, end:until].t(), errors[start:end])

    near, far = STRIDES
    for number, value in enumerate(columns):
        level, error, scale = made[number], wrong[number], bounds.scales[number]
        torch.div(value, scale, out=level).round_()
        if bounds.zeros is not None:
            level.add_(bounds.zeros[number])
        level.clamp_(bounds.low, bounds.high)
        if bounds.pinned is not None:
            level.masked_fill_(bounds.pinned[number], bounds.low)
        read = level if bounds.zeros is None else torch.sub(level, bounds.zeros[number], out=error)
        torch.mul(read, scale, out=error).sub_(value)
        after = number + 1
        if after % near and after < len(left):
            end = min(after - after % near + near, len(left))
            left[after:end].addr_(factor[number, after:end], error)
        elif after % far:
            tell(after - near, after, min(after - after % far + far, len(left)))
        else:
            tell(after - far, after, len(left))
    return levels
