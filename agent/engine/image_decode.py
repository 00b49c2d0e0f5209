"""Reads a client's picture and writes it again, plainly: the one module that knows Pillow.

The runtime has a decoder of its own, which ends the whole process at a broken JPEG. So it never sees what a client
sent, only a PNG that was written here. See decision 16.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from agent.engine.memory import usable_bytes
from contract.bundle.picture_families import drawn_size
from contract.errors import RequestInvalid

MAX_PIXELS = 1 << 24
"""4096 x 4096, of all pictures of a request together. A file of a few hundred bytes can claim to be of any size."""

BYTES_A_PIXEL = 16
"""Of memory while a picture is read, drawn and read again by the runtime."""

MAX_RATIO = 32
"""Of the longer side to the shorter: models cut pictures into squares, and a line has none."""

MAX_SCANS = 64
"""Of a JPEG. Progressive ones have about ten; each goes over the whole picture, and thousands fit into a small file."""

ORIENTATION = 0x0112
TURNS = ("", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
"""By EXIF's orientation, 1 to 8: what brings the picture upright."""

ON_ITS_SIDE = TURNS[4:]
FORMATS = ("PNG", "JPEG")


def measure_image(data: bytes, most: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of the picture in ``data`` once it is upright, from its header.

    Raises:
        RequestInvalid: as :func:`decode_image` does, as far as the header says so.
    """
    from PIL import Image

    with _refusals(data), Image.open(io.BytesIO(data), formats=FORMATS) as found:
        _check_size(*found.size, most)
        width, height = found.size
        # A PNG's own getexif reads every pixel to find what may stand behind them.
        turn = _upright(lambda: Image.Image.getexif(found))
        return (height, width) if turn in ON_ITS_SIDE else (width, height)


def decode_image(data: bytes, most: int = MAX_PIXELS, *, side: int = 0, square: bool = False) -> tuple[bytes, int]:
    """The picture in ``data`` (PNG or JPEG) as an RGB PNG, and how many pixels it had.

    It is turned upright, on white where it is transparent, the first frame of several, and made smaller if it is large
    or longer than ``side``; in the middle of a white ``square`` where one is asked for.

    Raises:
        RequestInvalid: it is broken, has more than ``most`` pixels, or is too narrow.
        MemoryError: there is none left.
    """
    from PIL import Image

    target = io.BytesIO()
    with _refusals(data):
        with Image.open(io.BytesIO(data), formats=FORMATS) as found:
            pixels = _check_size(*found.size, most)
            turn = _upright(found.getexif)
            size = drawn_size(found.width, found.height, side)
            found.draft("RGB", size)  # a JPEG is read at half or a quarter of its size, if that is enough
            plain = _plain(found)
        if plain.width > size[0] or plain.height > size[1]:
            plain = plain.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        if turn:
            plain = plain.transpose(Image.Transpose[turn])
        if square:
            plain = _in_square(plain)
        plain.info.clear()
        plain.save(target, "PNG", compress_level=1)
    return target.getvalue(), pixels


@contextmanager
def _refusals(data: bytes) -> Iterator[None]:
    """Guard reading ``data``: whatever Pillow raises, it is no picture, but for one that it finds too large itself."""
    from PIL import Image

    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise RequestInvalid(f"it has more than {MAX_SCANS} scans: save it again as a baseline image", field="messages")
    try:
        yield
    except (RequestInvalid, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        text = f"it has far more than the {MAX_PIXELS} pixels that a request may have: make it smaller"
        raise RequestInvalid(text, field="messages") from error
    except Exception as error:
        raise RequestInvalid("it is no PNG or JPEG that can be read", field="messages") from error


def _in_square(picture: Any) -> Any:
    from PIL import Image

    side = max(picture.size)
    found = Image.new("RGB", (side, side), "white")
    found.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return found


def _plain(found: Any) -> Any:
    """``found`` in RGB."""
    from PIL import Image

    if found.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(found).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if not found.has_transparency_data:
        return found.convert("RGB")
    drawn = found.convert("RGBA")
    plain = Image.new("RGB", drawn.size, "white")
    plain.paste(drawn, mask=drawn.getchannel("A"))
    return plain


def _upright(read_exif: Callable[[], Any]) -> str:
    """How to bring a picture upright; nothing where its EXIF cannot be read."""
    try:
        return TURNS[int(read_exif().get(ORIENTATION, 1)) - 1]
    except Exception:
        return ""


def _check_size(width: int, height: int, most: int) -> int:
    pixels = width * height
    if pixels > most:
        text = f"{width} x {height} pixels are more than the {most} that are left of {MAX_PIXELS} in a request"
        raise RequestInvalid(f"{text}: make it smaller", field="messages")
    if max(width, height) > MAX_RATIO * min(width, height):
        text = f"{width} x {height} is more than {MAX_RATIO} times as long as wide: crop it"
        raise RequestInvalid(text, field="messages")
    if pixels * BYTES_A_PIXEL > usable_bytes():
        raise RequestInvalid(
            f"there is no memory here for {width} x {height} pixels: make it smaller", field="messages"
        )
    return pixels
