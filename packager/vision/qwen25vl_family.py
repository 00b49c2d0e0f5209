"""Qwen2.5-VL, as :mod:`packager.vision.family` asks."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from packager.sources.headers import read_headers
from packager.sources.weights import StoredTensor
from packager.vision.embedding import PictureTokens, write_embedding
from packager.vision.family import (
    EMBEDDING_FILE,
    ENCODER_FILE,
    Array,
    GraphTypes,
    Pixels,
    Prepared,
    Progress,
    Tensors,
    Written,
    normalise,
)
from packager.vision.qwen25vl import ENCODER, FRAMES, MERGE, Qwen25VLShape, read_qwen25vl
from packager.vision.qwen25vl_encoder import write_qwen25vl_encoder
from packager.vision.reference import give_weights, load_whole
from packager.vision.runtime import processor_config, resize_steps, sections
from packager.vision.stored import StoredWeights

SIDE = 10
"""Tokens along a side of a build's own pictures where the processor allows it: no whole number of windows."""

NOT_AN_INPUT = "image_grid_thw_of_each"
"""What the runtime is told the grid is called, so that it gives the graph all pictures at once, under its own name. One
by one it looks for pictures where none is: it fills up smaller ones, and counts as if it had not."""


class Qwen25Vision:
    """See :class:`packager.vision.family.VisionFamily`."""

    def check(self, path: Path, tensors: Iterable[StoredTensor]) -> None:
        read_qwen25vl(path, tensors)

    def write(self, path: Path, out: Path, types: GraphTypes, on_progress: Progress) -> Written:
        weights, shape = StoredWeights(path), _shape(path)
        write_qwen25vl_encoder(
            out / ENCODER_FILE, weights, shape, lambda done, total: on_progress(done, total + 1), types.encoder
        )
        write_embedding(out / EMBEDDING_FILE, weights, types.embedding, PictureTokens(token=shape.token))
        on_progress(1, 1)
        token = MERGE * shape.patch
        resize = {
            "interpolation": "CUBIC", "width": token, "height": token, "smart_resize": 1, "patch_size": shape.patch,
            "merge_size": MERGE, "min_pixels": shape.pixels[0], "max_pixels": shape.pixels[1],
        }  # fmt: skip
        cut = {"patch_size": shape.patch, "temporal_patch_size": FRAMES, "merge_size": MERGE}
        last = {"name": "patch_image", "type": "PatchImage", "attrs": cut}
        steps = resize_steps(resize, shape.mean, shape.deviation, last)
        return Written(processor_config("qwen2_5_image_processor", steps), _sections(shape))

    def side(self, path: Path) -> int:
        shape = _shape(path)
        token = MERGE * shape.patch
        few, many = (int(pixels**0.5) for pixels in shape.pixels)
        return token * min(max(SIDE, -(-few // token) + 1), max(1, many // token))

    def prepare(self, path: Path, picture: Pixels) -> Prepared:
        """One of whole tokens, which the processor leaves as it is; cut as that cuts it."""
        shape = _shape(path)
        token = MERGE * shape.patch
        height, width = picture.shape[:2]
        if height % token or width % token or not shape.pixels[0] <= height * width <= shape.pixels[1]:
            raise ValueError(f"{height} x {width} pixels are no whole tokens of {token}, or too few or too many")
        values = normalise(picture, shape.mean, shape.deviation)
        split = values.reshape(height // token, MERGE, shape.patch, width // token, MERGE, shape.patch, 3)
        patches = split.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
        twice = np.broadcast_to(patches, (*patches.shape[:5], FRAMES, *patches.shape[6:]))
        inputs: Tensors = {
            "pixel_values": np.ascontiguousarray(twice.reshape(-1, shape.columns)),
            "image_grid_thw": np.array([[1, height // shape.patch, width // shape.patch]], np.int64),
        }
        count = height * width // token**2
        return Prepared(inputs, [shape.start, *[shape.token] * count, _end(path)], count)

    def open_source(self, path: Path, text: Path | None) -> Qwen25VisionSource:
        return Qwen25VisionSource(path, text)


@functools.cache
def _shape(path: Path) -> Qwen25VLShape:
    return read_qwen25vl(path, read_headers(path).tensors)


@functools.cache
def _end(path: Path) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return int(tokenizer.convert_tokens_to_ids("<|vision_end|>"))


def _sections(shape: Qwen25VLShape) -> dict[str, Any]:
    found = sections("qwen2_5_vl", "pixel_values")
    found["vision"] |= {"patch_size": shape.patch, "spatial_merge_size": MERGE}
    found["vision"]["inputs"]["image_grid_thw"] = NOT_AN_INPUT
    # The runtime leaves padding out when it numbers places: a token that prompts have in them (the end of a turn is the
    # builder's choice where a checkpoint says nothing) would move all behind it.
    tokens = {"image_token_id": shape.token, "vision_start_token_id": shape.start, "pad_token_id": shape.film}
    return found | tokens


class Qwen25VisionSource:
    """transformers' own model; where only features are asked for, its encoder alone."""

    def __init__(self, path: Path, text: Path | None) -> None:
        self._shape = _shape(path)
        self._model = None if text is None else load_whole("Qwen2_5_VLForConditionalGeneration", path)
        self._encoder = load_qwen25vl_vision(path, self._shape)

    def features(self, inputs: Tensors) -> Array:
        import torch

        with torch.inference_mode():
            pixels, grid = (torch.from_numpy(inputs[name]) for name in ("pixel_values", "image_grid_thw"))
            return np.asarray(self._encoder(pixels, grid_thw=grid).pooler_output.numpy())

    def prompt(self, ids: Sequence[int], inputs: Tensors) -> tuple[Any, dict[str, Any]]:
        import torch

        assert self._model is not None
        tokens = torch.tensor([list(ids)])
        shown = tokens == self._shape.token
        model = self._model.model
        with torch.inference_mode():
            words = self._model.get_input_embeddings()(tokens).float()
            words[shown] = torch.from_numpy(self.features(inputs))
            grid = torch.from_numpy(inputs["image_grid_thw"])
            # Kept, so that what is said later stands where it does in transformers.
            positions, model.rope_deltas = model.get_rope_index(
                tokens, image_grid_thw=grid, mm_token_type_ids=shown.int()
            )
        return self._model, {"inputs_embeds": words, "position_ids": positions}


def load_qwen25vl_vision(path: Path, shape: Qwen25VLShape) -> Any:
    """transformers' encoder, in fp32."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    given = json.loads((path / "config.json").read_text("utf-8"))["vision_config"]
    encoder = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**given))
    return give_weights(encoder, StoredWeights(path), ENCODER)
