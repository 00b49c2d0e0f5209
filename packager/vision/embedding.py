"""The graph that makes embeddings of tokens and puts those of pictures where they belong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct

from packager.graph.embedding import BITS, choose_block, quantise_rows
from packager.vision.graph_writer import MICROSOFT, Array, GraphWriter, value
from packager.vision.stored import StoredWeights

TABLE = "model.embed_tokens.weight"


class PictureTokens(Struct, frozen=True):
    """Where features of pictures go: at tokens of the number ``token``, or below zero where that is None. Words'
    embeddings are multiplied by ``scale``.
    """

    token: int | None = None
    scale: float = 1.0


BELOW_ZERO = PictureTokens()


def write_embedding(path: Path, weights: StoredWeights, kind: str, pictures: PictureTokens = BELOW_ZERO) -> None:
    """Write it to ``path``, the table as ``kind`` says: ``float``, ``int8`` or ``int4``.

    Features come with any number of dimensions, the last of which is the embeddings': what has none is of another
    rank in the runtime. Tokens of pictures that none is left for stay words: what is generated later may be one.
    """
    _, width = weights.shape(TABLE)
    with GraphWriter(path) as graph:
        graph.constant("zero", 0)
        graph.constant("first", [0])
        shown = _find_tokens(graph, pictures.token)
        known = graph.node("Where", shown, "zero", "input_ids", name="known")
        words = _look_up(graph, weights, known, kind)
        if pictures.scale != 1.0:
            scale = graph.weight("scale", np.array([pictures.scale], np.float32))
            words = graph.node("Mul", words, scale, name="words_scaled")
        features = graph.node("Reshape", "image_features", graph.constant("row_shape", [-1, width]), name="features")
        found = graph.node("NonZero", shown, name="positions")
        each = graph.node("Transpose", found, name="position_rows", perm=[1, 0])
        sizes = [graph.node("Shape", x, name=f"{x}_count", start=0, end=1) for x in (each, features)]
        both = graph.node("Min", *sizes, name="both")
        rows, own = (graph.node("Slice", x, "first", both, name=f"{x}_used") for x in (each, features))
        graph.node("ScatterND", words, rows, own, name="inputs_embeds")
        graph.save(
            [value("input_ids", "INT64", ["batch_size", "sequence_length"]), value("image_features", "FLOAT", None)],
            [value("inputs_embeds", "FLOAT", ["batch_size", "sequence_length", width])],
        )


def _find_tokens(graph: GraphWriter, token: int | None) -> str:
    if token is None:
        return graph.node("Less", "input_ids", "zero", name="of_pictures")
    return graph.node("Equal", "input_ids", graph.constant("picture_token", token), name="of_pictures")


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
