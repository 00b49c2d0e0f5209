"""Gemma 3: what config.json and the weights' headers must say for the graph of SigLIP and its projector."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused
from packager.sources.checkpoint import read_json
from packager.sources.weights import StoredTensor
from packager.vision.judging import (
    published_name,
    read_colours,
    read_processor,
    refuse_other_token,
    refuse_wrong_vision,
)

ENCODER = "vision_tower.vision_model."
PROJECTOR = "multi_modal_projector."

TOKENS = 256
"""Of every picture; onnxruntime-genai knows no other number for this family."""

PICTURE_TEXT = "<image_soft_token>"
"""What onnxruntime-genai looks for in the tokenizer, 256 of which are a picture."""

FIXED = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "num_channels": 3}
"""Of ``vision_config``, with what transformers takes where nothing is said."""

FILTERS = {2: "LINEAR", 3: "CUBIC"}
"""How pictures are resized: Pillow's numbers, and the runtime's names for the same."""

UNREAD = re.compile(rf"^{re.escape(ENCODER)}(?:head\.|embeddings\.position_ids$)")
"""SigLIP's own pooling, which Gemma does not use, and a buffer."""


class Gemma3Shape(Struct, frozen=True):
    """``width`` of the encoder, ``inner`` of its feed-forward parts, ``hidden`` of the text model; pictures become
    ``side`` pixels squared by the runtime's filter ``resize``, and ``token`` stands for each of their features.
    """

    width: int
    inner: int
    layers: int
    heads: int
    epsilon: float
    side: int
    patch: int
    hidden: int
    token: int
    resize: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // self.patch

    @property
    def pooled(self) -> int:
        """Patches along a side of those that become one token."""
        return int(self.grid // TOKENS**0.5)


class _Encoder(Struct, frozen=True):
    """``vision_config``, with SigLIP's own values where nothing is said."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 16
    layer_norm_eps: float = 1e-6


def read_gemma3(path: Path, tensors: Iterable[StoredTensor]) -> Gemma3Shape:
    """The shape of the part of the checkpoint in ``path`` that sees, ``tensors`` being all that its files hold.

    Raises:
        BuildRefused: the configuration is of another kind, the processor's or the tokenizer's says something else, or
            weights are missing, of another size or too many.
    """
    config = read_json(path / "config.json")
    encoder, token, hidden = _read_config(path, config)
    file, given = read_processor(path)
    mean, deviation = read_colours(file, given)
    shape = Gemma3Shape(
        width=encoder.hidden_size,
        inner=encoder.intermediate_size,
        layers=encoder.num_hidden_layers,
        heads=encoder.num_attention_heads,
        epsilon=encoder.layer_norm_eps,
        side=encoder.image_size,
        patch=encoder.patch_size,
        hidden=hidden,
        token=token,
        resize=_read_filter(file, given),
        mean=mean,
        deviation=deviation,
    )
    named = {published_name(tensor.name): tensor for tensor in tensors}
    stored = {name: tensor for name, tensor in named.items() if name.startswith((ENCODER, PROJECTOR))}
    refuse_wrong_vision("Gemma3ForConditionalGeneration", stored, list_gemma3(shape), UNREAD)
    _check_processor(file, given, shape)
    refuse_other_token(path, PICTURE_TEXT, token)
    return shape


def _read_config(path: Path, config: dict[str, Any]) -> tuple[_Encoder, int, int]:
    given = config.get("vision_config")
    if not isinstance(given, dict):
        raise BuildRefused(
            f"{path}/config.json has no 'vision_config', which says how pictures are read; fetch it again"
        )
    for key, wanted in FIXED.items():
        if given.get(key, wanted) != wanted:
            raise BuildRefused(
                f"{path}/config.json has vision_config.{key} {given[key]!r}; only {wanted!r} can be built"
            )
    try:
        encoder = msgspec.convert(given, _Encoder)
    except msgspec.ValidationError as error:
        raise BuildRefused(f"{path}/config.json has a vision_config that cannot be read: {error}") from error
    if (
        encoder.hidden_size <= 0
        or encoder.num_attention_heads <= 0
        or encoder.hidden_size % encoder.num_attention_heads
    ):
        raise BuildRefused(
            f"{path}/config.json has vision_config.hidden_size {encoder.hidden_size}, which "
            f"{encoder.num_attention_heads} attention heads cannot share"
        )
    tokens = config.get("mm_tokens_per_image", TOKENS)
    if tokens != TOKENS:
        raise BuildRefused(
            f"{path}/config.json has mm_tokens_per_image {tokens!r}; the runtime makes {TOKENS} of a picture"
        )
    grid = encoder.image_size // encoder.patch_size if encoder.patch_size > 0 else 0
    if grid < 16 or encoder.image_size % encoder.patch_size or grid % 16:
        raise BuildRefused(
            f"{path}/config.json has pictures of {encoder.image_size} pixels in patches of {encoder.patch_size}, which "
            f"are no {TOKENS} tokens"
        )
    text = config.get("text_config")
    hidden = text.get("hidden_size", 2304) if isinstance(text, dict) else None
    token = config.get("image_token_index", config.get("image_token_id", 262144))
    for key, value in (("text_config.hidden_size", hidden), ("image_token_index", token)):
        if not isinstance(value, int) or value < 0:
            raise BuildRefused(f"{path}/config.json has {key} {value!r}; a number is expected")
    assert isinstance(hidden, int) and isinstance(token, int)
    return encoder, token, hidden


def _read_filter(file: Path, given: dict[str, Any]) -> str:
    number = given.get("resample", 2)
    if number not in FILTERS:
        raise BuildRefused(f"{file} has resample {number!r}; only 2 (bilinear) and 3 (bicubic) can be built")
    return FILTERS[number]


def _check_processor(file: Path, given: dict[str, Any], shape: Gemma3Shape) -> None:
    size = given.get("size")
    if not isinstance(size, dict) or (size.get("height"), size.get("width")) != (shape.side, shape.side):
        raise BuildRefused(f"{file} has size {size!r}, and the weights are for {shape.side} x {shape.side} pixels")
    if given.get("do_pan_and_scan"):
        raise BuildRefused(f"{file} has do_pan_and_scan true; the runtime reads a picture as a whole only")
    if given.get("image_seq_length", TOKENS) != TOKENS:
        raise BuildRefused(f"{file} has image_seq_length {given['image_seq_length']!r}, and the weights make {TOKENS}")


def list_gemma3(shape: Gemma3Shape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights."""
    width, inner = shape.width, shape.inner
    found: dict[str, tuple[int, ...]] = {
        f"{PROJECTOR}mm_input_projection_weight": (width, shape.hidden),
        f"{PROJECTOR}mm_soft_emb_norm.weight": (width,),
        f"{ENCODER}embeddings.patch_embedding.weight": (width, 3, shape.patch, shape.patch),
        f"{ENCODER}embeddings.patch_embedding.bias": (width,),
        f"{ENCODER}embeddings.position_embedding.weight": (shape.grid**2, width),
    }
    norms = ["post_layernorm"]
    for number in range(shape.layers):
        layer = f"encoder.layers.{number}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        for part, rows, columns in (
            *((f"self_attn.{part}_proj", width, width) for part in ("q", "k", "v", "out")),
            ("mlp.fc1", inner, width),
            ("mlp.fc2", width, inner),
        ):
            found[f"{ENCODER}{layer}{part}.weight"] = (rows, columns)
            found[f"{ENCODER}{layer}{part}.bias"] = (rows,)
    for name in norms:
        found |= {f"{ENCODER}{name}.weight": (width,), f"{ENCODER}{name}.bias": (width,)}
    return found
