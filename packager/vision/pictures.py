"""Pictures drawn by code, so that nobody owns them: what builds ask about, and the one that canaries show. Pure."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

GREY, RED, GREEN, BLUE, YELLOW = (196, 196, 196), (204, 36, 29), (60, 140, 50), (30, 70, 190), (240, 200, 40)

CANARY = "shapes"
CANARY_SIDE = 96


def draw(name: str, side: int) -> Pixels:
    """The picture ``name``, one of :data:`SCENES`, a square of ``side`` pixels."""
    return SCENES[name](side)


def _shapes(side: int) -> Pixels:
    """A red disc, a blue square and a green triangle on grey, and a yellow bar below them."""
    y, x = (np.mgrid[0:side, 0:side].astype(np.float32) + 0.5) / side
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = GREY
    picture[(x - 0.28) ** 2 + (y - 0.3) ** 2 < 0.18**2] = RED
    picture[(np.abs(x - 0.72) < 0.16) & (np.abs(y - 0.3) < 0.16)] = BLUE
    picture[(y > 0.54) & (y < 0.84) & (np.abs(x - 0.5) < (y - 0.54) * 0.7)] = GREEN
    picture[y > 0.92] = YELLOW
    return picture


def _stripes(side: int) -> Pixels:
    """Slopes of light, stripes that get narrower, and another colour in each quarter."""
    y, x = (np.mgrid[0:side, 0:side].astype(np.float32) + 0.5) / side
    waves = 0.5 + 0.5 * np.sin(2 * np.pi * 24 * x * x)
    planes = np.stack([0.6 * x + 0.4 * waves, 0.7 * y + 0.3 * (x > 0.5), 1 - 0.8 * x * y - 0.2 * (y > 0.5)], -1)
    return np.asarray((255 * planes).round().clip(0, 255), np.uint8)


def _noise(side: int) -> Pixels:
    """What a camera sees in the dark: patches, and grain over all of it."""
    random = np.random.default_rng(0)
    patches = random.integers(0, 160, (12, 12, 3)).repeat(-(-side // 12), 0).repeat(-(-side // 12), 1)[:side, :side]
    return np.asarray(patches + random.integers(0, 96, (side, side, 3)), np.uint8)


SCENES: dict[str, Callable[[int], Pixels]] = {"shapes": _shapes, "stripes": _stripes, "noise": _noise}


def encode_png(picture: Pixels) -> bytes:
    """``picture`` as a file, the same bytes everywhere where zlib is the same."""
    height, width = picture.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(picture))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def canary_picture() -> bytes:
    """The picture of a seeing bundle's canary: some hundred bytes, for it is in the manifest."""
    return encode_png(draw(CANARY, CANARY_SIDE))
