"""Phi-3-vision and Phi-3.5-vision, as :mod:`packager.vision.family` asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from packager.sources.headers import read_headers
from packager.sources.weights import StoredTensor
from packager.vision.embedding import write_embedding
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
from packager.vision.phi3v import (
    CROP,
    DEVIATION,
    ENCODER,
    GRID,
    MEAN,
    MERGED,
    PATCH,
    PREFIX,
    VisionShape,
    picture_tokens,
    read_vision_shape,
)
from packager.vision.phi3v_encoder import write_encoder
from packager.vision.reference import give_weights
from packager.vision.runtime import DECODE, processor_config, sections
from packager.vision.stored import StoredWeights

SIDE = 2 * CROP
"""Two crops to a side, as many as the published configuration takes: an order mistaken for another would show."""


class Phi3Vision:
    """See :class:`packager.vision.family.VisionFamily`."""

    def check(self, path: Path, tensors: Iterable[StoredTensor]) -> None:
        read_vision_shape(path, tensors)

    def write(self, path: Path, out: Path, types: GraphTypes, on_progress: Progress) -> Written:
        weights = StoredWeights(path)
        shape = read_vision_shape(path, read_headers(path).tensors)
        write_encoder(
            out / ENCODER_FILE, weights, shape, lambda done, total: on_progress(done, total + 1), types.encoder
        )
        write_embedding(out / EMBEDDING_FILE, weights, types.embedding)
        on_progress(1, 1)
        steps = [DECODE, {"name": "phi3_image_transform", "type": "Phi3ImageTransform"}]
        processor = processor_config("phi3v_image_processor", steps)
        return Written(processor, sections("phi3v", "pixel_values", "image_sizes"))

    def side(self, path: Path) -> int:
        return SIDE

    def prepare(self, path: Path, picture: Pixels) -> Prepared:
        """One of whole crops, which the processor leaves as it is; the whole is made smaller by taking means."""
        height, width = picture.shape[:2]
        rows, columns = height // CROP, width // CROP
        if (height, width) != (rows * CROP, columns * CROP) or rows != columns:
            raise ValueError(f"{height} x {width} is no square of whole crops")
        values = normalise(picture, MEAN, DEVIATION)
        own = values.reshape(rows, CROP, columns, CROP, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, CROP, CROP)
        whole = values.reshape(CROP, rows, CROP, columns, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
        count = picture_tokens(height, width)
        inputs: Tensors = {
            "pixel_values": np.concatenate([whole[None], own])[None].astype(np.float32),
            "image_sizes": np.array([[height, width]], np.int64),
        }
        return Prepared(inputs, [-1] * count, count)

    def open_source(self, path: Path, text: Path | None) -> Phi3VisionSource:
        return Phi3VisionSource(path, text)


class Phi3VisionSource:
    """transformers' encoder and text model; between them what the family's own code does, to which tests hold it."""

    def __init__(self, path: Path, text: Path | None) -> None:
        from packager.evaluate.source_process import load_source

        self._weights = StoredWeights(path)
        self._shape = read_vision_shape(path, read_headers(path).tensors)
        self._encoder = load_encoder(self._weights, self._shape)
        self._text = None if text is None else load_source(str(text))[0]

    def features(self, inputs: Tensors) -> Array:
        import torch
        from torch.nn.functional import gelu, linear

        def read(name: str) -> torch.Tensor:
            return torch.from_numpy(self._weights.read(f"{PREFIX}{name}"))

        crops = torch.from_numpy(inputs["pixel_values"][0])
        rows, columns = (int(side) // CROP for side in inputs["image_sizes"][0])
        with torch.inference_mode():
            seen = self._encoder(crops, output_hidden_states=True).hidden_states[-2]
            merged = _merge(seen[:, 1:].reshape(-1, GRID, GRID, self._shape.width))
            own = merged[1:].reshape(rows, columns, MERGED, MERGED, -1).transpose(1, 2)
            planes = (own.reshape(rows * MERGED, columns * MERGED, -1), merged[0])
            end = read("sub_GN").reshape(1, 1, -1)
            lines = [torch.cat([plane, end.expand(len(plane), 1, -1)], 1).flatten(0, 1) for plane in planes]
            joined = torch.cat([lines[0], read("glb_GN").reshape(1, -1), lines[1]])
            inner = gelu(linear(joined, read("img_projection.0.weight"), read("img_projection.0.bias")))
            found = linear(inner, read("img_projection.2.weight"), read("img_projection.2.bias"))
        return np.asarray(found.numpy())

    def prompt(self, ids: Sequence[int], inputs: Tensors) -> tuple[Any, dict[str, Any]]:
        import torch

        assert self._text is not None
        tokens = torch.tensor(ids)
        table = self._text.get_input_embeddings()
        with torch.inference_mode():
            words = table(tokens.clip(0)).float()
            words[tokens < 0] = torch.from_numpy(self.features(inputs))
        return self._text, {"inputs_embeds": words[None]}


def _merge(patches: Any) -> Any:
    """Two by two patches side by side, the upper ones first."""
    import torch

    return torch.cat([patches[:, y::2, x::2] for y in (0, 1) for x in (0, 1)], -1)


def load_encoder(weights: StoredWeights, shape: VisionShape) -> Any:
    """transformers' own encoder with the checkpoint's weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=CROP,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    return give_weights(CLIPVisionModel(config), weights, ENCODER)
