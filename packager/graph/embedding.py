"""The embedding of a model whose lm_head has a table of its own: quantised by block, as the builder leaves it in fp32.

The builder knows a quantised table only where embedding and lm_head share it. The runtime's ``GatherBlockQuantized``
needs no sharing: it looks rows up and multiplies them out, 8 or 4 bits a weight, with a scale for each block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BITS = {"int8": 8, "int4": 4}

BLOCKS = {8: (128, 64, 32, 16), 4: (32, 16)}
"""Weights that share a scale, by bits: the first that divides a row. 8 bits lose nothing by long blocks."""

ROWS = 4096
"""Rows that exist in fp32 at a time."""

NAME = "model.embed_tokens.weight"


def choose_block(bits: int, width: int) -> int | None:
    """The block size for rows of ``width`` weights; None where there is none, and the table stays as it is."""
    return next((block for block in BLOCKS[bits] if width % block == 0), None)


def quantise_rows(
    rows: npt.NDArray[np.float32], bits: int, block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Levels of ``rows``, two in a byte where they have 4 bits, around the middle of their range; and the scales."""
    blocks = rows.reshape(len(rows), -1, block)
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    middle = 2 ** (bits - 1)
    # The longest weight of a block lies on the end of the range that has one level more.
    scales = (furthest / np.float32(-middle)).astype(np.float32)
    divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
    levels = (np.round(blocks / divisor).clip(-middle, middle - 1) + middle).astype(np.uint8).reshape(rows.shape)
    return (levels if bits == 8 else levels[:, ::2] | levels[:, 1::2] << 4), scales


def quantise_embedding(model_class: Any, bits: int) -> None:
    """Let ``model_class``, the builder's ``Model``, quantise an embedding of its own; for this whole process."""
    plain = model_class.make_embedding_lookup

    def make_embedding_lookup(self: Any, embedding: Any, basename: str, lm_head: Any) -> Any:
        shared = self.tied_quantized_embeddings or self.tied_unquantized_embeddings
        block = choose_block(bits, int(embedding.shape[1]))
        if block is None or (shared and getattr(lm_head, "can_reuse_as_embedding", True)):
            return plain(self, embedding, basename, lm_head)
        parts = [
            quantise_rows(np.ascontiguousarray(rows.detach().float().numpy()), bits, block)
            for rows in embedding.split(ROWS)
        ]
        name, levels, scales = f"{basename}/GatherBlockQuantized", f"{NAME}_Q{bits}", f"{NAME}_scales"
        self.make_initializer(np.concatenate([part[0] for part in parts]), levels)
        self.make_initializer(np.concatenate([part[1] for part in parts]), scales)
        self.make_node(
            "GatherBlockQuantized",
            inputs=[levels, self.input_names["input_ids"], scales],
            outputs=[f"{name}/output_0"],
            name=name,
            domain="com.microsoft",
            bits=bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
        return f"{name}/output_0"

    model_class.make_embedding_lookup = make_embedding_lookup
