"""What pictures will cost, from their headers alone, before one pixel is read. Pure.

How many tokens a picture becomes is the family's (:mod:`contract.bundle.picture_families`); of some that is known only
once their processor ran.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from contract.bundle.device_plan import size_text
from contract.bundle.footprint import FLOAT_BYTES
from contract.bundle.picture_families import Cost, Look, Size
from contract.errors import RequestInvalid


class PlannedFor(Struct, frozen=True):
    """The model that pictures are planned for: ``look`` says what becomes of one, ``patch_bytes`` is what its encoder
    takes for a patch while it looks (:func:`contract.bundle.footprint.picture_scratch`), ``piece_bytes`` what its
    decoder takes for a token while it reads a picture in one piece; ``low``: whether ``detail`` low is another look.
    """

    look: Look | None
    context_length: int
    hidden_size: int
    patch_bytes: int
    piece_bytes: int = 0
    low: bool = True

    def scratch(self, cost: Cost) -> int:
        """Bytes that looking at a picture takes, and reading it, where the next one is looked at meanwhile."""
        return cost.values * FLOAT_BYTES + cost.patches * self.patch_bytes + cost.tokens * self.piece_bytes

    def fix(self, pictures: int) -> str:
        """What helps where so many are too much."""
        if pictures > 1:
            return "send fewer"
        return "ask with detail low, or send a smaller one" if self.low else "use a device with more memory"


def check_plan(model: PlannedFor, sizes: Sequence[Size], room: int, *, held: int = 0) -> int | None:
    """How many tokens pictures become, where the family is known; ``room`` in bytes is there for them, of which the
    first ``held`` ones need none any more.

    Raises:
        RequestInvalid: they do not fit the context, or there is no memory for looking at them.
    """
    if model.look is None:
        return None
    total = needed = 0
    for number, size in enumerate(sizes, 1):
        cost = model.look(size)
        total += cost.tokens
        check_context(number, total, model)
        if number <= held:
            continue
        needed += cost.tokens * model.hidden_size * FLOAT_BYTES
        meanwhile = needed + model.scratch(cost)
        if meanwhile > room:
            text = f"picture {number}: {size.width} x {size.height} pixels become {cost.tokens} tokens, looking at them"
            fix = "ask with detail low, or send fewer" if model.low else "send fewer, or use a device with more memory"
            raise RequestInvalid(
                f"{text} takes {size_text(meanwhile)}, and there are {size_text(room)} here: {fix}", field="messages"
            )
    return total


def check_time(model: PlannedFor, sizes: Sequence[Size], patch_seconds: float, deadline_seconds: float) -> None:
    """``patch_seconds`` is the shortest that a look at a patch took here so far, of a picture's together.

    Raises:
        RequestInvalid: even so the encoder would not be done with these pictures by the deadline.
    """
    if model.look is None:
        return
    seconds = patch_seconds * sum(model.look(size).patches for size in sizes)
    if seconds > deadline_seconds:
        fix = "ask with detail low, send fewer" if model.low else "send fewer"
        raise RequestInvalid(
            f"looking at these pictures takes {seconds:.1f} s here at the least, and {deadline_seconds:.1f} s are "
            f"left: {fix}, or allow more time",
            field="deadline_ms",
        )


def check_context(number: int, tokens: int, model: PlannedFor) -> None:
    """Raises:
    RequestInvalid: ``number`` pictures of so many ``tokens`` fill the context.
    """
    if tokens > model.context_length:
        several = f"{number} pictures come" if number > 1 else "the picture comes"
        raise RequestInvalid(
            f"{several} to {tokens} tokens and the context has {model.context_length}: {model.fix(number)}",
            field="messages",
        )
