"""What pictures will cost, from their headers alone, before one pixel is read. Pure.

How many tokens a picture becomes is the family's: the functions here say what onnxruntime-genai 0.18's processors do.
Kinds of models that are not here are counted after their processor ran.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct

from contract.bundle.device_plan import size_text
from contract.bundle.footprint import FLOAT_BYTES
from contract.errors import RequestInvalid

PHI3V_CROP = 336
PHI3V_CROPS = 16
PHI3V_CROP_TOKENS = 144
PHI3V_ROW = 12
"""Tokens along a side of a crop."""
PHI3V_PATCHES = 577
"""Of a crop: 24 x 24 and one for the whole."""


class Size(Struct, frozen=True):
    """Of a picture, upright; ``low``: only the look at it as a whole is asked for."""

    width: int
    height: int
    low: bool = False

    @property
    def pixels(self) -> int:
        return self.width * self.height


class Cost(Struct, frozen=True):
    """``tokens`` in the prompt, and ``crops`` that the encoder looks at, of ``crop`` pixels along a side and so many
    ``patches`` each.
    """

    tokens: int
    crops: int
    crop: int
    patches: int

    def scratch(self, patch_bytes: int) -> int:
        """Bytes that an encoder takes while it looks, which takes ``patch_bytes`` for a patch."""
        return self.crops * (3 * self.crop**2 * FLOAT_BYTES + self.patches * patch_bytes)


class PlannedFor(Struct, frozen=True):
    """The model that pictures are planned for: ``kind`` is the ``model.type`` of genai_config.json, ``patch_bytes``
    what its encoder takes for a patch while it looks (:func:`contract.bundle.footprint.picture_scratch`).
    """

    kind: str
    context_length: int
    hidden_size: int
    patch_bytes: int


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
    tokens = (rows * columns + 1) * PHI3V_CROP_TOKENS + 1 + (rows + 1) * PHI3V_ROW
    return Cost(tokens, rows * columns + 1, PHI3V_CROP, PHI3V_PATCHES)


COSTS: dict[str, Callable[[Size], Cost]] = {"phi3v": phi3v_cost}
"""By ``model.type`` of genai_config.json."""


def check_plan(model: PlannedFor, sizes: Sequence[Size], room: int, *, held: int = 0) -> int | None:
    """How many tokens pictures become, where the family is known; ``room`` in bytes is there for them, of which the
    first ``held`` ones need none any more.

    Raises:
        RequestInvalid: they do not fit the context, or there is no memory for looking at them.
    """
    if model.kind not in COSTS:
        return None
    total = needed = 0
    for number, size in enumerate(sizes, 1):
        cost = COSTS[model.kind](size)
        total += cost.tokens
        check_context(number, total, model.context_length)
        if number <= held:
            continue
        needed += cost.tokens * model.hidden_size * FLOAT_BYTES
        meanwhile = needed + cost.scratch(model.patch_bytes)
        if meanwhile > room:
            text = f"picture {number}: {size.width} x {size.height} pixels become {cost.tokens} tokens, looking at them"
            raise RequestInvalid(
                f"{text} takes {size_text(meanwhile)}, and there are {size_text(room)} here: ask with detail low, or "
                "send fewer",
                field="messages",
            )
    return total


def check_time(model: PlannedFor, sizes: Sequence[Size], crop_seconds: float, deadline_seconds: float) -> None:
    """``crop_seconds`` is the shortest that a look at a crop took here so far.

    Raises:
        RequestInvalid: even so the encoder would not be done with these pictures by the deadline.
    """
    if model.kind not in COSTS:
        return
    seconds = crop_seconds * sum(COSTS[model.kind](size).crops for size in sizes)
    if seconds > deadline_seconds:
        raise RequestInvalid(
            f"looking at these pictures takes {seconds:.1f} s here at the least, and {deadline_seconds:.1f} s are "
            "left: ask with detail low, send fewer, or allow more time",
            field="deadline_ms",
        )


def check_context(number: int, tokens: int, context_length: int) -> None:
    """Raises:
    RequestInvalid: ``number`` pictures of so many ``tokens`` fill the context.
    """
    if tokens > context_length:
        several = f"{number} pictures come" if number > 1 else "the picture comes"
        fix = "send fewer" if number > 1 else "ask with detail low, or send a smaller one"
        raise RequestInvalid(
            f"{several} to {tokens} tokens and the context has {context_length}: {fix}", field="messages"
        )
