"""What each kind of model that sees needs, by ``model.type`` of genai_config.json. Pure.

One description for whoever plans memory and time, prepares pictures or cuts prompts, on both sides. How many tokens a
picture becomes is what onnxruntime-genai 0.18's processors make of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from contract.onnx.graph import OnnxModel

LOW_SIDE = 512
"""Pixels along the longer side of a picture that is asked about with ``detail`` low, where that makes a difference."""

PHI3V_CROP = 336
PHI3V_CROPS = 16
PHI3V_CROP_TOKENS = 144
PHI3V_ROW = 12
"""Tokens along a side of a crop."""
PHI3V_PATCHES = 577
"""Of a crop: 24 x 24 and one for the whole."""

GEMMA3_TOKENS = 256
"""Of every picture."""

QWEN25VL_MERGE = 2
"""Patches along a side of a token."""
QWEN25VL_FRAMES = 2
"""A picture stands twice where a film has two frames."""

MAX_DRAWN = 1 << 22
"""2048 x 2048: larger ones are made smaller. More than models look at, and what is drawn is held several times over."""

AXES = 3
"""Of positions where tokens are placed by more than their order: time, height and width."""

CHANNELS = 3
IMAGE = 4
"""Dimensions of pictures, and of the weights that make patches of them."""


class Size(Struct, frozen=True):
    """Of a picture, upright; ``low``: it is asked about with ``detail`` low."""

    width: int
    height: int
    low: bool = False

    @property
    def pixels(self) -> int:
        return self.width * self.height


class Cost(Struct, frozen=True):
    """What a picture becomes: ``tokens`` in the prompt, and ``patches`` that the encoder looks at, with so
    many ``values`` in all.
    """

    tokens: int
    patches: int
    values: int


Look = Callable[[Size], Cost]
"""What becomes of a picture, by its header alone."""


Attributes = Mapping[str, Any]


class PictureFamily(Struct, frozen=True):
    """``placeholder``: where a picture stands in a text, as the runtime's processor looks for it.

    In a prompt a token ``below_zero`` stands for each feature, else ``model.image_token_id`` of the configuration.
    ``together``: the tokens of a picture see each other, so it is read in one piece, and the decoder is given the
    tokens' numbers. ``low``: what ``detail`` low does with a picture, to be looked at as a ``whole`` only, to be made
    ``smaller`` before, or nothing (``same``). ``plan`` reads in the encoder's graph what pictures cost; None where that
    is not known before they are prepared. It is given as well by which attributes the runtime's processor resizes them,
    as far as these are at hand. ``grid``: the processor's tensor that says in how many rows and columns of patches a
    picture was cut, where tokens are placed by these.
    """

    placeholder: str
    below_zero: bool = False
    together: bool = False
    low: Literal["whole", "smaller", "same"] = "smaller"
    plan: Callable[[OnnxModel, Attributes], Look | None] = lambda encoder, resize: None
    grid: str | None = None

    @property
    def low_side(self) -> int:
        """Pixels along the longer side of a picture with ``detail`` low; 0 where that is as large as it comes."""
        return 0 if self.low == "same" else LOW_SIDE


def phi3v_cost(size: Size) -> Cost:
    """Phi-3-vision: as many crops as fit, up to 16, a separator behind each row, one more, and the whole."""
    rows = columns = 1
    if not size.low:
        wide, high = max(size.width, size.height), min(size.width, size.height)
        ratio, scale = wide / high, 1
        while scale * math.ceil(scale / ratio) <= PHI3V_CROPS:
            scale += 1
        columns = scale - 1
        rows = max(1, math.ceil(int(columns * PHI3V_CROP / ratio) / PHI3V_CROP))
        if size.width < size.height:
            rows, columns = columns, rows
    crops = rows * columns + 1
    tokens = crops * PHI3V_CROP_TOKENS + 1 + (rows + 1) * PHI3V_ROW
    return Cost(tokens, crops * PHI3V_PATCHES, crops * CHANNELS * PHI3V_CROP**2)


def plan_gemma3(encoder: OnnxModel, resize: Attributes) -> Look | None:
    """Gemma 3: every picture is resized to the encoder's own size."""
    sides = [value.dims[-1] for value in encoder.graph.inputs if len(value.dims) == IMAGE]
    kernels = [tensor.dims[-1] for tensor in encoder.walk_tensors() if len(tensor.dims) == IMAGE]
    if len(sides) != 1 or len(kernels) != 1:
        return None
    [side], [kernel] = sides, kernels
    if not isinstance(side, int) or not 0 < kernel <= side:
        return None
    cost = Cost(GEMMA3_TOKENS, (side // kernel) ** 2, CHANNELS * side**2)
    return lambda size: cost


def plan_qwen25vl(encoder: OnnxModel, resize: Attributes) -> Look | None:
    """Qwen2.5-VL: as large as it comes, in whole tokens, between so few and so many pixels."""
    values = next((value.dims[-1] for value in encoder.graph.inputs if value.name == "pixel_values"), None)
    if not isinstance(values, int):
        return None
    patch = math.isqrt(values // (QWEN25VL_FRAMES * CHANNELS))
    few, many = resize.get("min_pixels", 0), resize.get("max_pixels", MAX_DRAWN)
    if not patch or not isinstance(few, int) or not isinstance(many, int) or many < (QWEN25VL_MERGE * patch) ** 2:
        return None

    def look(size: Size) -> Cost:
        width, height = drawn_size(size.width, size.height, LOW_SIDE if size.low else 0)
        width, height = smart_size(width, height, QWEN25VL_MERGE * patch, few, many)
        patches = (width // patch) * (height // patch)
        return Cost(patches // QWEN25VL_MERGE**2, patches, patches * values)

    return look


def smart_size(width: int, height: int, unit: int, few: int, many: int) -> tuple[int, int]:
    """Which multiples of ``unit`` the runtime makes of a picture's sides (``smart_resize``), for ``few`` to ``many``
    pixels.
    """

    def nearest(side: int) -> int:
        return max(unit, math.floor(side / unit + 0.5) * unit)

    pixels = nearest(width) * nearest(height)
    if pixels > many:
        share = math.sqrt(width * height / many)
        return max(unit, int(width / share / unit) * unit), max(unit, int(height / share / unit) * unit)
    if pixels < few:
        share = math.sqrt(few / (width * height))
        width, height = (max(1, int(side * share)) for side in (width, height))
        return -(-width // unit) * unit, -(-height // unit) * unit
    return nearest(width), nearest(height)


def drawn_size(width: int, height: int, side: int = 0) -> tuple[int, int]:
    """What is left of a picture that is drawn again: no more than :data:`MAX_DRAWN` pixels, and no side longer than
    ``side``, if that is not 0.
    """
    share = min(1.0, (MAX_DRAWN / (width * height)) ** 0.5, side / max(width, height) if side else 1.0)
    return max(1, int(width * share)), max(1, int(height * share))


PICTURE_FAMILIES = {
    "phi3v": PictureFamily("<|image_{}|>", below_zero=True, low="whole", plan=lambda encoder, resize: phi3v_cost),
    "phi4mm": PictureFamily("<|image_{}|>", below_zero=True),
    "gemma3": PictureFamily("<start_of_image>", together=True, low="same", plan=plan_gemma3),
    "qwen2_5_vl": PictureFamily(
        "<|vision_start|><|image_pad|><|vision_end|>", plan=plan_qwen25vl, grid="image_grid_thw"
    ),
    "qwen3_vl": PictureFamily("<|vision_start|><|image_pad|><|vision_end|>"),
    "mistral3": PictureFamily("[IMG]"),
}
"""Kinds that are not here take no pictures."""
