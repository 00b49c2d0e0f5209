"""What each kind of model that sees needs, by ``model.type`` of genai_config.json. Pure.

One description for whoever plans memory and time, prepares pictures or cuts prompts, on both sides. How many tokens a
picture becomes is what onnxruntime-genai 0.18's processors make of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

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


class PictureFamily(Struct, frozen=True):
    """``placeholder``: where a picture stands in a text, as the runtime's processor looks for it.

    In a prompt a token ``below_zero`` stands for each feature, else ``model.image_token_id`` of the configuration.
    ``together``: the tokens of a picture see each other, so it is read in one piece, and the decoder is given the
    tokens' numbers. ``low``: what ``detail`` low does with a picture, to be looked at as a ``whole`` only, to be made
    ``smaller`` before, or nothing (``same``). ``plan`` reads in the encoder's graph what pictures cost; None where that
    is not known before they are prepared.
    """

    placeholder: str
    below_zero: bool = False
    together: bool = False
    low: Literal["whole", "smaller", "same"] = "smaller"
    plan: Callable[[OnnxModel], Look | None] = lambda encoder: None

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


def plan_gemma3(encoder: OnnxModel) -> Look | None:
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


PICTURE_FAMILIES = {
    "phi3v": PictureFamily("<|image_{}|>", below_zero=True, low="whole", plan=lambda encoder: phi3v_cost),
    "phi4mm": PictureFamily("<|image_{}|>", below_zero=True),
    "gemma3": PictureFamily("<start_of_image>", together=True, low="same", plan=plan_gemma3),
    "qwen2_5_vl": PictureFamily("<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen3_vl": PictureFamily("<|vision_start|><|image_pad|><|vision_end|>"),
    "mistral3": PictureFamily("[IMG]"),
}
"""Kinds that are not here take no pictures."""
