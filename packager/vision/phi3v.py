"""Phi-3-vision and Phi-3.5-vision: what config.json and the weights' headers must say for their graphs to be written.

The encoder is CLIP ViT-L/14-336, of which the configuration gives no more than the name and the width; how many layers
it has, and how wide they are inside, is read from the weights and held against each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct

from contract.errors import BuildRefused
from packager.sources.checkpoint import read_json
from packager.sources.weights import StoredTensor
from packager.vision.judging import read_processor, refuse_wrong_vision, same_numbers

PREFIX = "model.vision_embed_tokens."
ENCODER = f"{PREFIX}img_processor.vision_model."

CROP = 336
PATCH = 14
GRID = CROP // PATCH
"""Patches along a side of a crop."""

MERGED = GRID // 2
"""Tokens along a side of a crop: two by two patches are one."""

CROP_TOKENS = MERGED * MERGED
MAX_CROPS = 16
"""Into which onnxruntime-genai cuts a picture, whatever the processor's configuration says."""

HEAD = 64
"""Width of an attention head of every CLIP."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's pixels; onnxruntime-genai has no others for this family."""

PROCESSOR = {
    "image_processor_type": "Phi3VImageProcessor",
    "do_convert_rgb": True,
    "do_rescale": True,
    "do_normalize": True,
}
"""What a processor's configuration may leave out, and cannot have otherwise."""

CROP_KEYS = ("size", "crop_size", "image_size")

EMBEDDING = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
"""How the published models make tokens of a picture; of other ways there is no published model."""

ENCODER_NAMES = {"name": "clip_vision_model", "num_img_tokens": CROP_TOKENS, "layer_idx": -2, "type_feature": "patch"}
OPTIONAL = ("layer_idx", "type_feature", "embedding_cls")

UNREAD = re.compile(rf"^{re.escape(ENCODER)}embeddings\.position_ids$|^{re.escape(PREFIX)}wte\.weight$")
"""A buffer, and the text model's embedding under a second name."""

_LAYER = re.compile(rf"^{re.escape(ENCODER)}encoder\.layers\.(\d+)\.")


class VisionShape(Struct, frozen=True):
    """``width`` of the encoder, ``inner`` of its feed-forward parts, ``hidden`` of the text model."""

    width: int
    inner: int
    layers: int
    hidden: int

    @property
    def heads(self) -> int:
        """Attention heads of the encoder."""
        return self.width // HEAD

    @property
    def used_layers(self) -> int:
        """Features are those before the last layer."""
        return self.layers - 1


def picture_tokens(height: int, width: int) -> int:
    """Tokens of a picture that was made ``height`` by ``width`` pixels, whole crops both: its own, with a separator
    behind each row; one more; and those of the picture as a whole.
    """
    rows, columns = height // CROP, width // CROP
    return (rows * columns + 1) * CROP_TOKENS + 1 + (rows + 1) * MERGED


def read_vision_shape(path: Path, tensors: Iterable[StoredTensor]) -> VisionShape:
    """The shape of the part of the checkpoint in ``path`` that sees, ``tensors`` being all that its files hold.

    Raises:
        BuildRefused: the configuration is of another kind, the processor's says something else than the model was
            trained with, or weights are missing, of another size or too many.
    """
    config = read_json(path / "config.json")
    width = _check_config(path, config)
    stored = {tensor.name: tensor for tensor in tensors if tensor.name.startswith(PREFIX)}
    layers = 1 + max((int(found[1]) for name in stored if (found := _LAYER.match(name))), default=-1)
    first = stored.get(f"{ENCODER}encoder.layers.0.mlp.fc1.weight")
    hidden = config.get("hidden_size")
    shape = VisionShape(
        width=width,
        inner=first.shape[0] if first is not None and first.shape else 4 * width,
        layers=max(layers, 2),
        hidden=hidden if isinstance(hidden, int) else 0,
    )
    refuse_wrong_vision("Phi3VForCausalLM", stored, list_vision_weights(shape), UNREAD)
    check_processor(path)
    return shape


def _check_config(path: Path, config: dict[str, Any]) -> int:
    """The encoder's width."""
    for key, wanted in (("embd_layer", EMBEDDING), ("img_processor", ENCODER_NAMES)):
        given = config.get(key)
        if not isinstance(given, dict):
            raise BuildRefused(f"{path}/config.json has no {key!r}, which says how pictures are read; fetch it again")
        for name, value in wanted.items():
            if given.get(name, value if name in OPTIONAL else None) != value:
                raise BuildRefused(
                    f"{path}/config.json has {key}.{name} {given.get(name)!r}; only {value!r} can be built"
                )
    width = config["img_processor"].get("image_dim_out")
    if not isinstance(width, int) or not 0 < width <= 2**14 or width % HEAD:
        raise BuildRefused(f"{path}/config.json has img_processor.image_dim_out {width!r}; CLIP's is 1024")
    return width


def check_processor(path: Path) -> None:
    """Refuse a processor's configuration by which pictures would be other numbers than the device makes of them.

    Raises:
        BuildRefused: naming the key.
    """
    file, given = read_processor(path)
    for key, value in PROCESSOR.items():
        if given.get(key, value) != value:
            raise BuildRefused(f"{file} has {key} {given[key]!r}; the runtime prepares pictures for {value!r} only")
    for key in CROP_KEYS:
        if key in given and not _is_crop(given[key]):
            raise BuildRefused(f"{file} has {key} {given[key]!r}, and the encoder's weights are for {CROP} pixels")
    for key, wanted in (("image_mean", MEAN), ("image_std", DEVIATION)):
        values = given.get(key)
        if not same_numbers(values, wanted):
            raise BuildRefused(f"{file} has {key} {values!r}; the runtime knows {list(wanted)} for this family only")
    if given.get("num_img_tokens") != CROP_TOKENS or isinstance(given["num_img_tokens"], bool):
        raise BuildRefused(
            f"{file} has num_img_tokens {given.get('num_img_tokens')!r}, and the weights make {CROP_TOKENS} of a crop"
        )
    crops = given.get("num_crops")
    if not isinstance(crops, int) or isinstance(crops, bool) or not 1 <= crops <= MAX_CROPS:
        raise BuildRefused(f"{file} has num_crops {crops!r}; the runtime cuts a picture into up to {MAX_CROPS}")


def _is_crop(value: Any) -> bool:
    """Whether a size of a processor's configuration, in one of the forms these have, is that of a crop."""
    sides = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return bool(sides) and all(side == CROP for side in sides)


def list_vision_weights(shape: VisionShape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights."""
    width, hidden, inner = shape.width, shape.hidden, shape.inner
    found: dict[str, tuple[int, ...]] = {
        f"{PREFIX}glb_GN": (1, 1, 4 * width),
        f"{PREFIX}sub_GN": (1, 1, 1, 4 * width),
        f"{PREFIX}img_projection.0.weight": (hidden, 4 * width),
        f"{PREFIX}img_projection.0.bias": (hidden,),
        f"{PREFIX}img_projection.2.weight": (hidden, hidden),
        f"{PREFIX}img_projection.2.bias": (hidden,),
        f"{ENCODER}embeddings.class_embedding": (width,),
        f"{ENCODER}embeddings.patch_embedding.weight": (width, 3, PATCH, PATCH),
        f"{ENCODER}embeddings.position_embedding.weight": (GRID * GRID + 1, width),
    }
    vectors = ["pre_layrnorm", "post_layernorm"]
    for number in range(shape.layers):
        layer = f"encoder.layers.{number}."
        vectors += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found[f"{ENCODER}{layer}self_attn.{part}.weight"] = (width, width)
            found[f"{ENCODER}{layer}self_attn.{part}.bias"] = (width,)
        found |= {
            f"{ENCODER}{layer}mlp.fc1.weight": (inner, width),
            f"{ENCODER}{layer}mlp.fc1.bias": (inner,),
            f"{ENCODER}{layer}mlp.fc2.weight": (width, inner),
            f"{ENCODER}{layer}mlp.fc2.bias": (width,),
        }
    for name in vectors:
        found |= {f"{ENCODER}{name}.weight": (width,), f"{ENCODER}{name}.bias": (width,)}
    return found
