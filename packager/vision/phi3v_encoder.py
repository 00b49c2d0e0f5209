"""The graph that makes features of pictures: CLIP, two by two patches to a token, separators, projection.

Crops that only fill up are not looked at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.vision.clip_layer import clip_layer
from packager.vision.family import EncoderType, Progress
from packager.vision.graph_writer import MICROSOFT, GraphWriter, Nodes, value
from packager.vision.parts import Parts
from packager.vision.phi3v import CROP, ENCODER, GRID, MERGED, PATCH, PREFIX, VisionShape
from packager.vision.picture_loop import write_picture_loop
from packager.vision.stored import StoredWeights

QUICK_GELU = 1.702


def write_encoder(
    path: Path, weights: StoredWeights, shape: VisionShape, on_progress: Progress, kind: EncoderType = "float"
) -> None:
    """Write it to ``path``, the weights of its products as ``kind`` says."""
    with GraphWriter(path) as graph:
        body = Nodes()
        parts = Parts(graph, body, weights, kind)
        for name, number in (("zero", 0), ("one", 1), ("crop", CROP), ("merged", MERGED)):
            parts.constant(name, [number])
        rows, columns, crops = _pick_crops(parts)
        features = _encode(parts, crops, shape, on_progress)
        seen = _merge(parts, features, rows, columns, shape)
        counted = graph.node("Shape", "image_sizes", name="counted", start=0, end=1)
        write_picture_loop(graph, body, seen, shape.hidden, counted=counted)
        graph.save(
            [
                value("pixel_values", "FLOAT", ["pictures", "crops", 3, CROP, CROP]),
                value("image_sizes", "INT64", ["pictures", 2]),
            ],
            [value("image_features", "FLOAT", ["tokens", shape.hidden])],
        )


def _pick_crops(parts: Parts) -> tuple[str, str, str]:
    """Rows and columns of crops that this picture has, and the pixels of those behind the whole picture's."""
    body = parts.body
    size = body.node("Gather", "image_sizes", "number", name="size", axis=0)
    sides = body.node("Div", size, "crop", name="sides")
    rows = body.node("Slice", sides, "zero", "one", name="rows")
    columns = body.node("Slice", sides, "one", parts.constant("two", [2]), name="columns")
    own = body.node("Mul", rows, columns, name="own")
    last = body.node("Add", own, "one", name="crops_end")
    pixels = body.node("Gather", "pixel_values", "number", name="pixels", axis=0)
    return rows, columns, body.node("Slice", pixels, "zero", last, name="crops")


def _encode(parts: Parts, crops: str, shape: VisionShape, on_progress: Progress) -> str:
    """The patches' features of the layer before the last, without the class token."""
    body, width = parts.body, shape.width
    patches = body.node(
        "Conv",
        crops,
        parts.weight(f"{ENCODER}embeddings.patch_embedding.weight"),
        name="patches",
        kernel_shape=[PATCH, PATCH],
        strides=[PATCH, PATCH],
    )
    flat = body.node("Reshape", patches, parts.constant("flat_shape", [0, width, GRID * GRID]), name="flat")
    rows = body.node("Transpose", flat, name="patch_rows", perm=[0, 2, 1])
    count = body.node("Shape", rows, name="count", start=0, end=1)
    wide = body.node("Concat", count, parts.constant("class_shape", [1, width]), name="class_size", axis=0)
    token = parts.weight(f"{ENCODER}embeddings.class_embedding", (1, 1, width))
    classes = body.node("Expand", token, wide, name="classes")
    tokens = body.node("Concat", classes, rows, name="with_class", axis=1)
    placed = body.node(
        "Add", tokens, parts.weight(f"{ENCODER}embeddings.position_embedding.weight"), name="with_positions"
    )
    x = parts.norm(placed, f"{ENCODER}pre_layrnorm", "normed")
    for number in range(shape.used_layers):
        x = _layer(parts, x, number, shape.heads)
        on_progress(number + 1, shape.used_layers)
    end = parts.constant("patches_end", [GRID * GRID + 1])
    return body.node("Slice", x, "one", end, "one", name="features")


def _layer(parts: Parts, x: str, number: int, heads: int) -> str:
    def activation(inner: str, name: str) -> str:
        return parts.body.node("QuickGelu", inner, name=name, domain=MICROSOFT, alpha=QUICK_GELU)

    return clip_layer(parts, x, f"{ENCODER}encoder.layers.{number}.", f"layer_{number}", heads, activation=activation)


def _merge(parts: Parts, features: str, rows: str, columns: str, shape: VisionShape) -> str:
    """Tokens of one picture: its crops side by side, row by row, then the picture as a whole."""
    body, wide = parts.body, 4 * shape.width
    pairs = parts.constant("pairs_shape", [-1, MERGED, 2, MERGED, 2, shape.width])
    paired = body.node("Reshape", features, pairs, name="pairs")
    square = body.node("Transpose", paired, name="squares", perm=[0, 1, 3, 2, 4, 5])
    merged_shape = parts.constant("merged_shape", [-1, MERGED, MERGED, wide])
    merged = body.node("Reshape", square, merged_shape, name="merged_patches")
    whole = body.node("Slice", merged, "zero", "one", name="whole")
    far = parts.constant("far", [np.iinfo(np.int64).max])
    own = body.node("Slice", merged, "one", far, name="own_crops")
    tail = parts.constant("tail", [MERGED, MERGED, wide])
    crop_shape = body.node("Concat", rows, columns, tail, name="crop_shape", axis=0)
    table = body.node("Reshape", own, crop_shape, name="crop_table")
    beside = body.node("Transpose", table, name="beside", perm=[0, 2, 1, 3, 4])
    high, broad = (
        body.node("Mul", side, "merged", name=f"{name}_tokens") for name, side in (("high", rows), ("broad", columns))
    )
    last = parts.constant("wide", [wide])
    plane_shape = body.node("Concat", high, broad, last, name="plane_shape", axis=0)
    plane = body.node("Reshape", beside, plane_shape, name="plane")
    parts.weight(f"{PREFIX}sub_GN", (1, 1, wide))
    parts.constant("line_tail", [1, wide])
    parts.constant("rows_shape", [-1, wide])
    lines = _end_rows(body, plane, high, "own")
    plain = body.node("Squeeze", whole, "zero", name="whole_plane")
    whole_lines = _end_rows(body, plain, "merged", "whole")
    separator = parts.weight(f"{PREFIX}glb_GN", (1, wide))
    joined = body.node("Concat", lines, separator, whole_lines, name="joined", axis=0)
    inner = parts.linear(joined, f"{PREFIX}img_projection.0", "projected")
    active = body.node("Gelu", inner, name="projected_active")
    return parts.linear(active, f"{PREFIX}img_projection.2", "seen")


def _end_rows(body: Nodes, plane: str, high: str, name: str) -> str:
    """The rows of a plane of tokens one after the other, each with the separator behind it."""
    size = body.node("Concat", high, "line_tail", name=f"{name}_ends_size", axis=0)
    ends = body.node("Expand", f"{PREFIX}sub_GN", size, name=f"{name}_ends")
    ended = body.node("Concat", plane, ends, name=f"{name}_ended", axis=1)
    return body.node("Reshape", ended, "rows_shape", name=f"{name}_lines")
