"""The real runtime on a processor that gives a token the same bits read with others and decoded alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.engine.batched.positions import Positions
from agent.engine.batched.runner import Runner
from agent.engine.batched.self_check import VERIFIED


class RowByRow(Runner):
    """A processor on which reading a draft gives the bits of decoding, and a row alone those of a row in company,
    whatever this one's kernels do.
    """

    def decode(
        self,
        first: int,
        tokens: Sequence[int],
        pasts: Sequence[int],
        width: int = 0,
        positions: Sequence[Positions | None] = (),
    ) -> NDArray[np.float32]:
        if len(tokens) > 1:
            return super().decode(first, tokens, pasts, width, positions)
        return self.decode_padded(first, tokens[0], pasts[0], width, positions[0] if positions else None)

    def prefill(
        self,
        slot: int,
        past: int,
        tokens: Sequence[int],
        width: int = 0,
        *,
        last: bool = False,
        positions: Positions | None = None,
    ) -> NDArray[np.float32]:
        if last or not 1 < len(tokens) <= VERIFIED:
            return super().prefill(slot, past, tokens, width, last=last, positions=positions)
        rows = [
            self.decode(slot, [token], [past + step], width, [positions])[0].copy() for step, token in enumerate(tokens)
        ]
        return np.stack(rows)
