"""Where tokens stand that are told more than their order: pictures by row and column, words behind them."""

from __future__ import annotations

import numpy as np

from agent.engine.batched.positions import Positions
from agent.engine.pictures.features import Encoded, Features, Grid

GRIDS = {3: Grid(2, 3), 0: Grid(4, 1)}


def picture(number: int) -> list[int]:
    grid = GRIDS[number]
    encoded = Encoded([-1] * (grid.rows * grid.columns), np.zeros((1, 1), np.float32), grid)
    return Features(number, encoded).tokens


PROMPT = [5, 6, *picture(3), 7, *picture(0), *picture(0), 8, 9]
"""Two pictures between words, the second one twice."""


def test_a_picture_stands_by_row_and_column_and_what_follows_behind_its_longer_side() -> None:
    positions = Positions(PROMPT, GRIDS)
    assert positions.of(0, len(PROMPT)).tolist() == [
        [0, 1, *[2] * 6, 5, *[6] * 4, *[10] * 4, 14, 15],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, *[6] * 4, *[10] * 4, 14, 15],
    ]
    assert [positions.after(len(PROMPT) + step) for step in range(3)] == [16, 17, 18]


def test_slices_stand_where_the_whole_does() -> None:
    positions = Positions(PROMPT, GRIDS)
    whole = positions.of(0, len(PROMPT) + 6)
    for start, end in ((0, 4), (4, 16), (9, 10), (16, len(PROMPT) + 2), (len(PROMPT), len(PROMPT) + 6)):
        assert np.array_equal(positions.of(start, end), whole[:, start:end])
    assert whole[:, len(PROMPT) :].tolist() == [[positions.after(len(PROMPT) + step) for step in range(6)]] * 3


def test_words_stand_one_behind_the_other() -> None:
    assert Positions([4, 5, 6], {}).of(1, 5).tolist() == [[1, 2, 3, 4]] * 3
