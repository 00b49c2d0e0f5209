"""The tiny model with eyes: every picture becomes tokens of its mean colour, so that another colour is another answer.

A folder as onnxruntime-genai has it for Phi-3-vision: a decoder of embeddings, a graph that makes them of words and of
a picture's tokens, and one that makes these of pixels.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.packager.families import build_here

PICTURE_TOKENS = 2509
"""What Phi-3-vision's processor makes of any square picture, 4 x 4 crops: (16 + 1) x 144 + 1 + (4 + 1) x 12."""

WIDE_TOKENS = 1621
"""And of one of :func:`wide`'s shape, which it cuts into no more than 5 x 2 crops."""

LOW_TOKENS = 313
"""And of any picture that is looked at as a whole: one crop."""

CONTEXT = 8192
STEPS = [
    {"operation": {"name": "decode", "domain": "com.microsoft.extensions", "type": "DecodeImage"}},
    {"operation": {"name": "rgb", "type": "ConvertRGB"}},
    {"operation": {"name": "crops", "type": "Phi3ImageTransform"}},
]


def make_seeing(checkpoint: Path, folder: Path) -> Path:
    """Build ``folder`` from the tiny model's ``checkpoint``."""
    from onnx import helper
    from safetensors.numpy import load_file

    longer = folder.parent / "checkpoint"
    shutil.copytree(checkpoint, longer, dirs_exist_ok=True)
    config = json.loads((longer / "config.json").read_text()) | {"max_position_embeddings": CONTEXT}
    (longer / "config.json").write_text(json.dumps(config))
    build_here(longer, folder, "int4", options=("block_size=32", "accuracy_level=4", "exclude_embeds=true"))
    table = load_file(longer / "model.safetensors")["model.embed_tokens.weight"]
    width = table.shape[1]
    save_graph(
        folder / "embedding.onnx",
        [
            helper.make_node("Max", ["input_ids", "zero"], ["known"]),
            helper.make_node("Gather", ["table", "known"], ["words"]),
            helper.make_node("Less", ["input_ids", "zero"], ["of_pictures"]),
            helper.make_node("NonZero", ["of_pictures"], ["places"]),
            helper.make_node("Transpose", ["places"], ["rows"], perm=[1, 0]),
            helper.make_node("ScatterND", ["words", "rows", "image_features"], ["inputs_embeds"]),
        ],
        [value("input_ids", "INT64", ["batch", "tokens"]), value("image_features", "FLOAT", ["pieces", width])],
        [value("inputs_embeds", "FLOAT", ["batch", "tokens", width])],
        {"table": table, "zero": np.int64(0)},
    )
    save_graph(
        folder / "vision.onnx",
        [
            helper.make_node("ReduceMean", ["pixel_values"], ["colours"], axes=[1, 3, 4], keepdims=0),
            helper.make_node("MatMul", ["colours", "mix"], ["seen"]),
            helper.make_node("Unsqueeze", ["seen", "second"], ["one"]),
            helper.make_node("ReduceMax", ["image_sizes"], ["longest"], keepdims=0),
            helper.make_node("Equal", ["longest", "crop"], ["one_crop"]),
            helper.make_node("Equal", ["longest", "five_crops"], ["is_wide"]),
            helper.make_node("Where", ["is_wide", "some", "many"], ["more"]),
            helper.make_node("Where", ["one_crop", "few", "more"], ["times"]),
            helper.make_node("Tile", ["one", "times"], ["all"]),
            helper.make_node("Reshape", ["all", "shape"], ["image_features"]),
        ],
        [value("pixel_values", "FLOAT", ["n", "crops", 3, "y", "x"]), value("image_sizes", "INT64", ["n", 2])],
        [value("image_features", "FLOAT", ["pieces", width])],
        {
            "mix": table[[40, 140, 240]],
            "second": np.array([1]),
            "crop": np.int64(336),
            "five_crops": np.int64(5 * 336),
            "few": np.array([1, LOW_TOKENS, 1]),
            "some": np.array([1, WIDE_TOKENS, 1]),
            "many": np.array([1, PICTURE_TOKENS, 1]),
            "shape": np.array([-1, width]),
        },
    )
    config = json.loads((folder / "genai_config.json").read_text())
    same = {name: name for name in ("input_ids", "image_features", "pixel_values", "image_sizes", "inputs_embeds")}
    config["model"] |= {
        "type": "phi3v",
        "embedding": {
            "filename": "embedding.onnx",
            "inputs": {name: same[name] for name in ("input_ids", "image_features")},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
        "vision": {
            "filename": "vision.onnx",
            "config_filename": "processor_config.json",
            "inputs": {name: same[name] for name in ("pixel_values", "image_sizes")},
            "outputs": {"image_features": "image_features"},
        },
    }
    (folder / "genai_config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(json.dumps({"processor": {"name": "p", "transforms": STEPS}}))
    return folder


def png(red: int, green: int, blue: int, *, width: int = 32, height: int = 32) -> bytes:
    """A PNG of one colour."""
    rows = (b"\0" + bytes((red, green, blue)) * width) * height
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def wide(red: int, green: int, blue: int) -> bytes:
    """A PNG of one colour that becomes as few tokens as any can that is not looked at as a whole."""
    return png(red, green, blue, width=80, height=30)


def value(name: str, kind: str, shape: list[Any]) -> Any:
    """A graph's input or output."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)


def save_graph(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], tensors: dict[str, Any]) -> None:
    """Write a small graph by hand."""
    import onnx
    from onnx import helper, numpy_helper

    weights = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
