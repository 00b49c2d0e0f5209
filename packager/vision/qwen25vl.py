"""Qwen2.5-VL: what config.json and the weights' headers must say for its encoder's graph to be written."""

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

ENCODER = "visual."
MERGE = 2
"""Patches along a side of a token; onnxruntime-genai cuts pictures for no other."""

FRAMES = 2
"""A picture stands twice where a film has two frames."""

MARKS = {
    "<|image_pad|>": "image_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|video_pad|>": "video_token_id",
}
"""Texts that onnxruntime-genai writes where a picture stands, and where config.json has their numbers."""

BICUBIC = 3
"""Pillow's number of the filter, and the only one that the runtime resizes by here."""

UNREAD = re.compile(rf"^{re.escape(ENCODER)}rotary_pos_emb\.inv_freq$")
"""A buffer that some versions saved."""


class Qwen25VLShape(Struct, frozen=True):
    """``width`` of the encoder, ``inner`` of its feed-forward parts, ``hidden`` of the text model.

    A window has ``window`` tokens along its side; the layers in ``whole`` look at everything. A picture becomes
    ``pixels``, the fewest and the most; ``token`` stands for one of its features, ``start`` stands before them.
    ``film`` is in no prompt, for films are not read.
    """

    width: int
    inner: int
    layers: int
    heads: int
    hidden: int
    patch: int
    window: int
    whole: tuple[int, ...]
    pixels: tuple[int, int]
    token: int
    start: int
    film: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def columns(self) -> int:
        """Numbers of a patch."""
        return 3 * FRAMES * self.patch**2


class _Encoder(Struct, frozen=True):
    """``vision_config``, with transformers' own values where nothing is said."""

    depth: int = 32
    hidden_size: int = 3584
    hidden_act: str = "silu"
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = MERGE
    temporal_patch_size: int = FRAMES
    window_size: int = 112
    out_hidden_size: int = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)


def read_qwen25vl(path: Path, tensors: Iterable[StoredTensor]) -> Qwen25VLShape:
    """The shape of the part of the checkpoint in ``path`` that sees, ``tensors`` being all that its files hold.

    Raises:
        BuildRefused: the configuration is of another kind, the processor's or the tokenizer's says something else, or
            weights are missing, of another size or too many.
    """
    config = read_json(path / "config.json")
    encoder = _read_encoder(path, config)
    tokens = _read_tokens(path, config)
    file, given = read_processor(path)
    mean, deviation = read_colours(file, given)
    shape = Qwen25VLShape(
        width=encoder.hidden_size,
        inner=encoder.intermediate_size,
        layers=encoder.depth,
        heads=encoder.num_heads,
        hidden=encoder.out_hidden_size,
        patch=encoder.patch_size,
        window=encoder.window_size // MERGE // encoder.patch_size,
        whole=encoder.fullatt_block_indexes,
        pixels=_read_pixels(file, given, MERGE * encoder.patch_size),
        token=tokens["image_token_id"],
        start=tokens["vision_start_token_id"],
        film=tokens["video_token_id"],
        mean=mean,
        deviation=deviation,
    )
    named = {published_name(tensor.name): tensor for tensor in tensors}
    stored = {name: tensor for name, tensor in named.items() if name.startswith(ENCODER)}
    refuse_wrong_vision("Qwen2_5_VLForConditionalGeneration", stored, list_qwen25vl(shape), UNREAD)
    _check_processor(file, given, shape)
    for text, key in MARKS.items():
        refuse_other_token(path, text, tokens[key])
    return shape


def _read_encoder(path: Path, config: dict[str, Any]) -> _Encoder:
    given = config.get("vision_config")
    if not isinstance(given, dict):
        raise BuildRefused(
            f"{path}/config.json has no 'vision_config', which says how pictures are read; fetch it again"
        )
    try:
        encoder = msgspec.convert(
            {**given, "in_channels": given.get("in_channels", given.get("in_chans", 3))}, _Encoder
        )
    except msgspec.ValidationError as error:
        raise BuildRefused(f"{path}/config.json has a vision_config that cannot be read: {error}") from error
    for key, wanted in (
        ("hidden_act", "silu"),
        ("in_channels", 3),
        ("spatial_merge_size", MERGE),
        ("temporal_patch_size", FRAMES),
    ):
        if getattr(encoder, key) != wanted:
            raise BuildRefused(
                f"{path}/config.json has vision_config.{key} {getattr(encoder, key)!r}; only {wanted!r} can be built"
            )
    token = MERGE * encoder.patch_size
    if encoder.patch_size <= 0 or encoder.window_size < token:
        raise BuildRefused(
            f"{path}/config.json has windows of {encoder.window_size} pixels for patches of {encoder.patch_size}"
        )
    if encoder.num_heads <= 0 or encoder.hidden_size <= 0 or encoder.hidden_size % (4 * encoder.num_heads):
        raise BuildRefused(
            f"{path}/config.json has vision_config.hidden_size {encoder.hidden_size}, which {encoder.num_heads} "
            "attention heads cannot share"
        )
    text = config.get("text_config")
    hidden = config.get("hidden_size", text.get("hidden_size") if isinstance(text, dict) else None)
    if encoder.out_hidden_size != hidden:
        raise BuildRefused(
            f"{path}/config.json has vision_config.out_hidden_size {encoder.out_hidden_size}, and the text model's "
            f"hidden_size is {hidden!r}"
        )
    return encoder


def _read_tokens(path: Path, config: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key in MARKS.values():
        text = config.get("text_config")
        value = config.get(key, text.get(key) if isinstance(text, dict) else None)
        if not isinstance(value, int) or value < 0:
            raise BuildRefused(f"{path}/config.json has {key} {value!r}; a token's number is expected")
        found[key] = value
    return found


def _read_pixels(file: Path, given: dict[str, Any], token: int) -> tuple[int, int]:
    size = given.get("size")
    sizes = size if isinstance(size, dict) else {}
    few = given.get("min_pixels") or sizes.get("shortest_edge") or sizes.get("min_pixels") or 56 * 56
    many = given.get("max_pixels") or sizes.get("longest_edge") or sizes.get("max_pixels") or 28 * 28 * 1280
    if not isinstance(few, int) or not isinstance(many, int) or not 0 < few <= many or many < token * token:
        raise BuildRefused(f"{file} has min_pixels {few!r} and max_pixels {many!r}, between which no picture fits")
    return few, many


def _check_processor(file: Path, given: dict[str, Any], shape: Qwen25VLShape) -> None:
    for key, wanted in (("patch_size", shape.patch), ("merge_size", MERGE), ("temporal_patch_size", FRAMES)):
        if given.get(key, wanted) != wanted:
            raise BuildRefused(f"{file} has {key} {given[key]!r}, and the weights are for {wanted}")
    if given.get("resample", BICUBIC) != BICUBIC:
        raise BuildRefused(f"{file} has resample {given['resample']!r}; only {BICUBIC} (bicubic) can be built")


def list_qwen25vl(shape: Qwen25VLShape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights."""
    width, inner, four = shape.width, shape.inner, MERGE**2 * shape.width
    found: dict[str, tuple[int, ...]] = {
        f"{ENCODER}patch_embed.proj.weight": (width, 3, FRAMES, shape.patch, shape.patch),
        f"{ENCODER}merger.ln_q.weight": (width,),
    }
    linear = {"merger.mlp.0": (four, four), "merger.mlp.2": (shape.hidden, four)}
    for number in range(shape.layers):
        block = f"blocks.{number}."
        found |= {f"{ENCODER}{block}norm1.weight": (width,), f"{ENCODER}{block}norm2.weight": (width,)}
        linear |= {
            f"{block}attn.qkv": (3 * width, width),
            f"{block}attn.proj": (width, width),
            f"{block}mlp.gate_proj": (inner, width),
            f"{block}mlp.up_proj": (inner, width),
            f"{block}mlp.down_proj": (width, inner),
        }
    for name, (rows, columns) in linear.items():
        found |= {f"{ENCODER}{name}.weight": (rows, columns), f"{ENCODER}{name}.bias": (rows,)}
    return found
