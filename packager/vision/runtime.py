"""What onnxruntime-genai's own files say of a model that sees, where families do not differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packager.vision.family import EMBEDDING_FILE, ENCODER_FILE, PROCESSOR_FILE

DOMAIN = "com.microsoft.extensions"
DECODE: dict[str, Any] = {"name": "decode_image", "type": "DecodeImage", "attrs": {"color_space": "RGB"}}
"""Never with ConvertRGB behind it, which takes what it is given for BGR: red would be blue."""


def processor_config(name: str, steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``processor_config.json``: what becomes of a picture, step by step."""
    return {"processor": {"name": name, "transforms": [{"operation": {"domain": DOMAIN, **step}} for step in steps]}}


def resize_steps(
    resize: dict[str, Any], mean: Sequence[float], deviation: Sequence[float], last: dict[str, Any]
) -> list[dict[str, Any]]:
    """Of a picture that is read, made of another size as the attributes ``resize`` say, brought to ``mean`` and
    ``deviation``, and laid out by ``last``.
    """
    return [
        DECODE,
        {"name": "resize", "type": "Resize", "attrs": resize},
        {"name": "rescale", "type": "Rescale"},
        {"name": "normalize", "type": "Normalize", "attrs": {"mean": [*mean], "std": [*deviation]}},
        last,
    ]


def sections(kind: str, *inputs: str) -> dict[str, Any]:
    """Of ``model`` in genai_config.json: model type ``kind``, and ``inputs`` of the graph that sees."""

    def same(*names: str) -> dict[str, str]:
        return {name: name for name in names}

    return {
        "type": kind,
        "embedding": {
            "filename": EMBEDDING_FILE,
            "inputs": same("input_ids", "image_features"),
            "outputs": same("inputs_embeds"),
        },
        "vision": {
            "filename": ENCODER_FILE,
            "config_filename": PROCESSOR_FILE,
            "inputs": same(*inputs),
            "outputs": same("image_features"),
        },
    }
