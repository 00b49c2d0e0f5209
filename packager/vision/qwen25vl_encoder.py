"""The graph that makes features of pictures for Qwen2.5-VL: patches that turn by where they are, windows, two by two.

What layers with windows look at is put together window by window, each filled up to its full
size with patches that nobody looks at; layers without know no such patches, and no mask.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.vision.family import EncoderType, Progress
from packager.vision.graph_writer import MICROSOFT, GraphWriter, Nodes, value
from packager.vision.parts import Parts
from packager.vision.picture_loop import write_picture_loop
from packager.vision.qwen25vl import ENCODER, MERGE, Qwen25VLShape
from packager.vision.stored import StoredWeights

EPSILON = 1e-6
THETA = 10000.0
FOUR = MERGE**2
"""Patches of a token, one after the other."""


def write_qwen25vl_encoder(
    path: Path, weights: StoredWeights, shape: Qwen25VLShape, on_progress: Progress, kind: EncoderType = "float"
) -> None:
    """Write it to ``path``, the weights of its products as ``kind`` says.

    Rows of ``pixel_values`` are as many for each picture: the runtime fills up those that have fewer.
    """
    with GraphWriter(path) as graph:
        counted = graph.node("Shape", "image_grid_thw", name="counted", start=0, end=1)
        rows = graph.node("Shape", "pixel_values", name="pixel_rows", start=0, end=1)
        graph.node("Div", rows, counted, name="rows_each")
        body = Nodes()
        parts = Parts(graph, body, weights, kind, EPSILON)
        seen = _Picture(parts, shape).write(on_progress)
        write_picture_loop(graph, body, seen, shape.hidden, counted=counted)
        graph.save(
            [
                value("pixel_values", "FLOAT", ["patches", shape.columns]),
                value("image_grid_thw", "INT64", ["pictures", 3]),
            ],
            [value("image_features", "FLOAT", ["tokens", shape.hidden])],
        )


class _Picture:
    """The nodes for one picture."""

    def __init__(self, parts: Parts, shape: Qwen25VLShape) -> None:
        self._parts, self._body, self._shape = parts, parts.body, shape
        for name, number in (("first", 0), ("second", 1)):
            parts.constant(name, [number])
        for name, number in (("zero", 0), ("one", 1), ("merge", MERGE), ("four", FOUR), ("side", shape.window)):
            parts.constant(name, number)

    def write(self, on_progress: Progress) -> str:
        """Its features."""
        body, parts, shape = self._body, self._parts, self._shape
        high, broad, count = self._measure()
        x = self._embed(count)
        turns = self._turn(count, broad)
        to_windows, back, mask = self._order(high, broad, count)
        for number in range(shape.layers):
            x = self._layer(x, number, turns, None if number in shape.whole else (to_windows, back, mask))
            on_progress(number + 1, shape.layers)
        normed = parts.root_norm(x, f"{ENCODER}merger.ln_q", "merged_normed")
        joined = body.node("Reshape", normed, parts.constant("joined_shape", [-1, FOUR * shape.width]), name="joined")
        inner = parts.linear(joined, f"{ENCODER}merger.mlp.0", "projected")
        return parts.linear(body.node("Gelu", inner, name="projected_active"), f"{ENCODER}merger.mlp.2", "seen")

    def _measure(self) -> tuple[str, str, str]:
        """Tokens along its height and width, and how many patches it has."""
        body = self._body
        grid = body.node("Gather", "image_grid_thw", "number", name="grid", axis=0)
        sides = body.node("Div", grid, "merge", name="sides")
        high = body.node("Gather", sides, "one", name="high", axis=0)
        broad = body.node("Gather", sides, "merge", name="broad", axis=0)
        tokens = body.node("Mul", high, broad, name="tokens")
        return high, broad, body.node("Mul", tokens, "four", name="patches")

    def _embed(self, count: str) -> str:
        body, shape = self._body, self._shape
        start = body.node("Mul", "number", "rows_each", name="start")
        end = body.node("Add", start, count, name="end")
        pixels = body.node("Slice", "pixel_values", start, end, name="pixels")
        name = f"{ENCODER}patch_embed.proj.weight"
        rows = self._parts.read(name).reshape(shape.width, shape.columns)
        return self._parts.product(pixels, name, rows, "embedded")

    def _turn(self, count: str, broad: str) -> tuple[str, str, str]:
        """The patches' numbers, and cosines and sines of the angles that each is turned by, from its row and column."""
        body, parts, shape = self._body, self._parts, self._shape
        numbers = body.node("Range", "zero", count, "one", name="numbers")
        token = body.node("Div", numbers, "four", name="token")
        within = body.node("Mod", numbers, "four", name="within")
        axes = []
        for name, operator in (("row", "Div"), ("column", "Mod")):
            whole = body.node(operator, token, broad, name=f"token_{name}")
            part = body.node(operator, within, "merge", name=f"part_{name}")
            first = body.node("Mul", whole, "merge", name=f"first_{name}")
            along = body.node("Add", first, part, name=name)
            axes.append(body.cast(body.node("Unsqueeze", along, "second", name=f"{name}s"), "FLOAT", f"{name}_axis"))
        quarter = shape.width // shape.heads // 4
        speeds = 1.0 / THETA ** (np.arange(quarter, dtype=np.float32) / np.float32(quarter))
        name = parts.table("speeds", speeds[None])
        angles = [body.node("Mul", along, name, name=f"{along}_angles") for along in axes]
        both = body.node("Concat", *angles, name="angles", axis=1)
        row = body.node("Unsqueeze", numbers, "first", name="number_row")
        return row, body.node("Cos", both, name="cosines"), body.node("Sin", both, name="sines")

    def _order(self, high: str, broad: str, count: str) -> tuple[str, str, str]:
        """Which patch is where in the windows, where in the windows each patch is, and which of those are patches."""
        body, parts, shape = self._body, self._parts, self._shape
        windows = []
        for name, tokens in (("high", high), ("broad", broad)):
            more = body.node("Add", tokens, parts.constant("less", shape.window - 1), name=f"{name}_more")
            windows.append(body.node("Div", more, "side", name=f"windows_{name}"))
        lines = [
            body.node(
                "Range", "zero", body.node("Mul", each, "side", name=f"{each}_tokens"), "one", name=f"{each}_line"
            )
            for each in windows
        ]
        rows = body.node("Unsqueeze", lines[0], "second", name="window_rows")
        inside = body.node(
            "And",
            body.node("Less", rows, high, name="rows_inside"),
            body.node("Less", lines[1], broad, name="columns_inside"),
            name="inside",
        )
        upper = body.node("Mul", rows, broad, name="upper")
        tokens = body.node("Add", upper, lines[1], name="window_tokens")
        real = body.node("Where", inside, tokens, "zero", name="real_tokens")
        ordered = {}
        for name, plane in (("token", real), ("mask", body.cast(inside, "INT32", "inside_number"))):
            sides = [body.node("Unsqueeze", each, "first", name=f"{name}_{each}") for each in windows]
            side = parts.constant("side_list", [shape.window])
            size = body.node("Concat", sides[0], side, sides[1], side, name=f"{name}_split", axis=0)
            split = body.node("Reshape", plane, size, name=f"{name}_windows")
            turned = body.node("Transpose", split, name=f"{name}_turned", perm=[0, 2, 1, 3])
            flat = body.node(
                "Reshape", turned, parts.constant("flat_tokens", [-1, shape.window**2, 1]), name=f"{name}_flat"
            )
            ordered[name] = flat
        first = body.node("Mul", ordered["token"], "four", name="first_patch")
        patches = body.node("Add", first, parts.constant("each_patch", list(range(FOUR))), name="window_patches")
        area = parts.constant("window_area", [-1, FOUR * shape.window**2])
        to_windows = body.node("Reshape", patches, area, name="to_windows")
        four_times = parts.constant("four_times", [1, 1, FOUR])
        wide = body.node("Expand", ordered["mask"], four_times, name="mask_wide")
        mask = body.node("Reshape", wide, area, name="window_mask")
        return to_windows, self._find_back(windows[1], broad, count), mask

    def _find_back(self, across: str, broad: str, count: str) -> str:
        """Where each patch is among those of all windows."""
        body, parts, shape = self._body, self._parts, self._shape
        row, column = "token_row", "token_column"
        down = body.node("Mul", body.node("Div", row, "side", name="window_down"), across, name="windows_before")
        window = body.node("Add", down, body.node("Div", column, "side", name="window_right"), name="window")
        above = body.node("Mul", body.node("Mod", row, "side", name="row_within"), "side", name="above")
        inner = body.node("Add", above, body.node("Mod", column, "side", name="column_within"), name="inner")
        before = body.node("Mul", window, parts.constant("window_tokens_each", shape.window**2), name="before_window")
        at = body.node("Mul", body.node("Add", before, inner, name="token_at"), "four", name="patch_at")
        return body.node("Add", at, "within", name="back")

    def _layer(self, x: str, number: int, turns: tuple[str, str, str], windows: tuple[str, str, str] | None) -> str:
        body, parts, shape = self._body, self._parts, self._shape
        stem, at = f"{ENCODER}blocks.{number}.", f"layer_{number}"
        normed = parts.root_norm(x, f"{stem}norm1", f"{at}_norm1")
        joined = parts.linear(normed, f"{stem}attn.qkv", f"{at}_qkv")
        ready = []
        for third, each in enumerate(f"{at}_{letter}" for letter in "qkv"):
            edges = [parts.constant(f"third_{edge}", [edge * shape.width]) for edge in (third, third + 1)]
            part = body.node("Slice", joined, *edges, "second", name=each)
            one = body.node("Unsqueeze", part, "first", name=f"{each}_one")
            if each[-1] != "v":
                turned = f"{each}_turned"
                one = body.node("RotaryEmbedding", one, *turns, name=turned, domain=MICROSOFT, num_heads=shape.heads)
            ready.append(one)
        out = self._attend(ready, at, windows)
        out = parts.linear(out, f"{stem}attn.proj", f"{at}_out")
        x = body.node("Add", x, out, name=f"{at}_between")
        normed = parts.root_norm(x, f"{stem}norm2", f"{at}_norm2")
        gate = parts.linear(normed, f"{stem}mlp.gate_proj", f"{at}_gate")
        active = body.node("Mul", gate, body.node("Sigmoid", gate, name=f"{at}_sigmoid"), name=f"{at}_active")
        inner = body.node("Mul", active, parts.linear(normed, f"{stem}mlp.up_proj", f"{at}_up"), name=f"{at}_inner")
        return body.node("Add", x, parts.linear(inner, f"{stem}mlp.down_proj", f"{at}_down"), name=f"{at}_end")

    def _attend(self, ready: list[str], at: str, windows: tuple[str, str, str] | None) -> str:
        """``[patches, width]`` of queries, keys and values ``[1, patches, width]``."""
        body, parts, shape = self._body, self._parts, self._shape
        flat = parts.constant("patch_rows", [-1, shape.width])
        if windows is None:
            seen = body.node("MultiHeadAttention", *ready, name=f"{at}_seen", domain=MICROSOFT, num_heads=shape.heads)
            return body.node("Reshape", seen, flat, name=f"{at}_rows")
        to_windows, back, mask = windows
        split = [
            body.node("Gather", body.node("Squeeze", each, "first", name=f"{each}_plain"), to_windows,
                      name=f"{each}_windows", axis=0)
            for each in ready
        ]  # fmt: skip
        seen = body.node(
            "MultiHeadAttention", *split, "", mask, name=f"{at}_seen", domain=MICROSOFT, num_heads=shape.heads
        )
        rows = body.node("Reshape", seen, flat, name=f"{at}_window_rows")
        return body.node("Gather", rows, back, name=f"{at}_rows", axis=0)
