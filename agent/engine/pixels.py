"""Reads a client's picture and writes it again, plainly: the one module that knows Pillow.

The runtime has a decoder of its own, which ends the whole process at a broken JPEG. So it never sees what a client
sent, only a PNG that was written here. See decision 16.
"""

from __future__ import annotations

import io

from contract.errors import RequestInvalid

MAX_PIXELS = 1 << 24
"""4096 x 4096: decoded, 48 MiB. A file of a few hundred kilobytes can claim to be of any size."""

MAX_RATIO = 32
"""Of the longer side to the shorter: models cut pictures into squares, and a line has none."""


def redraw(data: bytes) -> bytes:
    """The picture in ``data`` (PNG or JPEG) as an RGB PNG: upright, on white where it is transparent, the first frame.

    Raises:
        RequestInvalid: it is broken, too large or too narrow.
    """
    from PIL import Image, ImageOps
    from PIL.PngImagePlugin import PngInfo

    target = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as found:
            _check_size(*found.size)
            upright = ImageOps.exif_transpose(found)
            if upright.has_transparency_data:
                drawn = upright.convert("RGBA")
                plain = Image.new("RGB", drawn.size, "white")
                plain.paste(drawn, mask=drawn.getchannel("A"))
            else:
                plain = upright.convert("RGB")
            plain.save(target, "PNG", compress_level=1, pnginfo=PngInfo(), icc_profile=None, exif=b"")
    except RequestInvalid:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise RequestInvalid(f"a picture cannot be read: {text}", field="messages") from error
    return target.getvalue()


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        text = f"a picture has {width} x {height} pixels, more than the {MAX_PIXELS} allowed: make it smaller"
        raise RequestInvalid(text, field="messages")
    if max(width, height) > MAX_RATIO * min(width, height):
        text = f"a picture of {width} x {height} is more than {MAX_RATIO} times as long as wide: cut it"
        raise RequestInvalid(text, field="messages")
