"""The graph that makes embeddings of tokens and puts those of pictures in: tokens below zero are a picture's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from packager.graph.embedding import BITS, choose_block, quantise_rows
from packager.vision.graph_writer import MICROSOFT, Array, GraphWriter, value
from packager.vision.stored import StoredWeights

TABLE = "model.embed_tokens.weight"


def write_embedding(path: Path, weights: StoredWeights, kind: str) -> None:
    """Write it to ``path``, the table as ``kind`` says: ``float``, ``int8`` or ``int4``."""
    _, width = weights.shape(TABLE)
    with GraphWriter(path) as graph:
        graph.constant("zero", 0)
        known = graph.node("Max", "input_ids", "zero", name="known")
        words = _look_up(graph, weights, known, kind)
        pictures = graph.node("Less", "input_ids", "zero", name="of_pictures")
        found = graph.node("NonZero", pictures, name="positions")
        each = graph.node("Transpose", found, name="position_rows", perm=[1, 0])
        graph.node("ScatterND", words, each, "image_features", name="inputs_embeds")
        graph.save(
            [
                value("input_ids", "INT64", ["batch_size", "sequence_length"]),
                value("image_features", "FLOAT", ["tokens", width]),
            ],
            [value("inputs_embeds", "FLOAT", ["batch_size", "sequence_length", width])],
        )


def _look_up(graph: GraphWriter, weights: StoredWeights, ids: str, kind: str) -> str:
    rows, width = weights.shape(TABLE)
    bits = BITS.get(kind)
    block = None if bits is None else choose_block(bits, width)
    if bits is None or block is None:
        table = graph.stream(TABLE, (rows, width), np.float32, weights.rows(TABLE))
        return graph.node("Gather", table, ids, name="words")

    def parts(which: int) -> Iterator[Array]:
        for piece in weights.rows(TABLE):
            yield quantise_rows(piece, bits, block)[which]

    levels = graph.stream(f"{TABLE}_Q{bits}", (rows, width * bits // 8), np.uint8, parts(0))
    scales = graph.stream(f"{TABLE}_scales", (rows, width // block), np.float32, parts(1))
    return graph.node(
        "GatherBlockQuantized",
        levels,
        ids,
        scales,
        name="words",
        domain=MICROSOFT,
        bits=bits,
        block_size=block,
        gather_axis=0,
        quantize_axis=1,
    )
