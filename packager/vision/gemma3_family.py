"""Gemma 3, as :mod:`packager.vision.family` asks."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contract.bundle.genai_config import CONFIG_FILE
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
from packager.vision.gemma3 import ENCODER, PROJECTOR, TOKENS, Gemma3Shape, read_gemma3
from packager.vision.gemma3_encoder import write_gemma3_encoder
from packager.vision.picture_mask import show_pictures_whole
from packager.vision.reference import give_weights, load_whole
from packager.vision.runtime import processor_config, resize_steps, sections
from packager.vision.stored import StoredWeights

DECODER_FILE = "model.onnx"


class Gemma3Vision:
    """See :class:`packager.vision.family.VisionFamily`."""

    def check(self, path: Path, tensors: Iterable[StoredTensor]) -> None:
        read_gemma3(path, tensors)

    def write(self, path: Path, out: Path, types: GraphTypes, on_progress: Progress) -> Written:
        weights, shape = StoredWeights(path), _shape(path)
        write_gemma3_encoder(
            out / ENCODER_FILE, weights, shape, lambda done, total: on_progress(done, total + 1), types.encoder
        )
        pictures = PictureTokens(token=shape.token, scale=float(np.float32(shape.hidden**0.5)))
        write_embedding(out / EMBEDDING_FILE, weights, types.embedding, pictures)
        show_pictures_whole(out / DECODER_FILE, shape.token)
        _give_tokens(out / CONFIG_FILE)
        on_progress(1, 1)
        resize = {"interpolation": shape.resize, "width": shape.side, "height": shape.side, "keep_aspect_ratio": 0}
        last = {"name": "to_channel_first", "type": "Permute3D", "attrs": {"dims": [2, 0, 1]}}
        steps = resize_steps(resize, shape.mean, shape.deviation, last)
        tokens = {"image_token_id": shape.token}
        return Written(processor_config("gemma_3_image_processor", steps), sections("gemma3", "pixel_values") | tokens)

    def side(self, path: Path) -> int:
        return _shape(path).side

    def prepare(self, path: Path, picture: Pixels) -> Prepared:
        """One of the size that the encoder takes, which the processor leaves as it is."""
        shape = _shape(path)
        if picture.shape[:2] != (shape.side, shape.side):
            raise ValueError(f"{picture.shape[0]} x {picture.shape[1]} is not {shape.side} pixels squared")
        values = normalise(picture, shape.mean, shape.deviation)
        inputs: Tensors = {"pixel_values": np.ascontiguousarray(values.transpose(2, 0, 1)[None])}
        return Prepared(inputs, list(_ids(path, shape)), TOKENS)

    def open_source(self, path: Path, text: Path | None) -> Gemma3VisionSource:
        return Gemma3VisionSource(path, text)


@functools.cache
def _shape(path: Path) -> Gemma3Shape:
    return read_gemma3(path, read_headers(path).tensors)


def _give_tokens(file: Path) -> None:
    """Let the runtime give the decoder the tokens' numbers as well."""
    document = json.loads(file.read_text("utf-8"))
    document["model"]["decoder"]["inputs"]["input_ids"] = "input_ids"
    file.write_text(json.dumps(document, indent=4), "utf-8")


@functools.cache
def _ids(path: Path, shape: Gemma3Shape) -> tuple[int, ...]:
    """As the runtime's processor writes them: an empty line, its beginning, its tokens, its end, an empty line."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    begin, end = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<start_of_image>", "<end_of_image>"))
    line = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    return (*line, begin, *[shape.token] * TOKENS, end, *line)


class Gemma3VisionSource:
    """transformers' own model; where only features are asked for, its encoder and projector alone."""

    def __init__(self, path: Path, text: Path | None) -> None:
        self._shape = _shape(path)
        self._encoder, self._projector = load_gemma3_vision(StoredWeights(path), self._shape)
        self._model = None if text is None else load_whole("Gemma3ForConditionalGeneration", path)

    def features(self, inputs: Tensors) -> Array:
        import torch

        with torch.inference_mode():
            found = [
                self._projector(self._encoder(torch.from_numpy(picture[None])).last_hidden_state)[0]
                for picture in inputs["pixel_values"]
            ]
        return np.stack([each.numpy() for each in found])

    def prompt(self, ids: Sequence[int], inputs: Tensors) -> tuple[Any, dict[str, Any]]:
        import torch

        assert self._model is not None
        tokens = torch.tensor([list(ids)])
        shown = tokens == self._shape.token
        with torch.inference_mode():
            words = self._model.get_input_embeddings()(tokens).float()
            words[shown] = torch.from_numpy(self.features(inputs)).reshape(-1, self._shape.hidden)
        return self._model, {"inputs_embeds": words, "token_type_ids": shown.long()}


def load_gemma3_vision(weights: StoredWeights, shape: Gemma3Shape) -> tuple[Any, Any]:
    """transformers' encoder and projector."""
    from transformers import Gemma3Config, SiglipVisionConfig, SiglipVisionModel
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

    config = SiglipVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.side,
        patch_size=shape.patch,
        layer_norm_eps=shape.epsilon,
        vision_use_head=False,
    )
    whole = Gemma3Config(
        vision_config=config.to_dict(), text_config={"hidden_size": shape.hidden}, mm_tokens_per_image=TOKENS
    )
    encoder, projector = SiglipVisionModel(config), Gemma3MultiModalProjector(whole)
    return give_weights(encoder, weights, ENCODER), give_weights(projector, weights, PROJECTOR)
