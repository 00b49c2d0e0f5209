"""Clients' pictures are read here, strictly, and what the runtime gets was written here."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from agent.engine.image_decode import MAX_PIXELS, MAX_SCANS, decode_image, measure_image
from contract.bundle.picture_families import MAX_DRAWN
from contract.errors import RequestInvalid
from tests.seeing import png


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, kind, **options)
    return target.getvalue()


def drawn(data: bytes) -> Image.Image:
    found = Image.open(io.BytesIO(decode_image(data)[0]), formats=("PNG",))
    found.load()
    assert found.mode == "RGB"
    return found


def test_a_jpeg_becomes_a_png_of_the_same_picture() -> None:
    found = drawn(encoded(Image.new("RGB", (40, 30), (200, 10, 10)), "JPEG", quality=95))
    assert found.size == (40, 30)
    assert all(abs(ours - theirs) < 8 for ours, theirs in zip(found.getpixel((20, 15)), (200, 10, 10), strict=True))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_kind_of_pixel_is_taken(mode: str) -> None:
    assert drawn(encoded(Image.new(mode, (8, 8)), "JPEG" if mode == "CMYK" else "PNG")).size == (8, 8)


def test_what_is_transparent_lies_on_white() -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 255, 255))
    found = drawn(encoded(picture, "PNG"))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_a_camera_held_on_its_side_is_turned() -> None:
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    assert drawn(encoded(picture, "JPEG", exif=exif)).size == (10, 20)


def test_an_odd_remark_of_a_camera_is_no_reason_to_refuse_its_picture() -> None:
    broken = (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x00\0\x07\0\0\0\x01\xff\0\0\0\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    )
    assert drawn(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=broken)).size == (10, 20)
    assert drawn(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=b"Exif\0\0nonsense")).size == (20, 10)


def test_sixteen_bits_of_grey_are_as_dark_as_they_were() -> None:
    data = np.full((4, 4), 20000, np.uint16)
    assert drawn(encoded(Image.fromarray(data), "PNG")).getpixel((1, 1)) == (78, 78, 78)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_large_pictures_are_made_smaller_and_keep_their_shape(kind: str) -> None:
    data = encoded(Image.new("RGB", (4000, 2000), (9, 99, 199)), kind)
    found = drawn(data)
    assert decode_image(data)[1] == 4000 * 2000
    assert found.width * found.height <= MAX_DRAWN
    assert abs(found.width / found.height - 2) < 0.01
    assert all(abs(ours - theirs) < 8 for ours, theirs in zip(found.getpixel((5, 5)), (9, 99, 199), strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_is_measured_upright_and_none_of_its_pixels_is_read(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    plain, turned = encoded(picture, kind), encoded(picture, kind, exif=exif)
    read: list[object] = []
    for reader in (PngImagePlugin.PngImageFile, Image.Image):
        monkeypatch.setattr(reader, "load", read.append)
    assert (measure_image(plain), measure_image(turned)) == ((20, 10), (10, 20))
    assert not read


def test_no_more_pixels_are_read_than_are_left() -> None:
    assert decode_image(png(1, 2, 3, width=20, height=20), 400)[1] == 400
    with pytest.raises(RequestInvalid, match="the 399 that are left"):
        decode_image(png(1, 2, 3, width=20, height=20), 399)


def test_thousands_of_scans_are_not_gone_through() -> None:
    progressive = encoded(Image.radial_gradient("L").resize((64, 64)), "JPEG", progressive=True)
    assert drawn(progressive).size == (64, 64)
    last = progressive.rindex(b"\xff\xda")
    with pytest.raises(RequestInvalid, match=f"more than {MAX_SCANS} scans"):
        decode_image(progressive[:-2] + progressive[last:-2] * MAX_SCANS + b"\xff\xd9")


def test_where_there_is_no_memory_pictures_are_refused_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.engine.image_decode.usable_bytes", lambda: 1 << 20)
    decode_image(png(1, 2, 3, width=200, height=200))
    with pytest.raises(RequestInvalid, match="no memory here for 2000 x 2000"):
        decode_image(png(1, 2, 3, width=2000, height=2000))


def test_nothing_but_pixels_goes_on() -> None:
    picture = Image.new("RGB", (8, 8))
    exif = picture.getexif()
    exif[0x010E] = "a private remark"
    assert b"private" not in decode_image(encoded(picture, "PNG", exif=exif, icc_profile=b"private profile"))[0]


def test_of_a_moving_picture_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    found = drawn(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    assert found.getpixel((0, 0)) == (255, 0, 0)


def claims(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is of this size."""
    whole = png(1, 2, 3)
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return whole[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + whole[33:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (claims(4097, 4096), f"of {MAX_PIXELS} in a request"),
        (claims(2**31 - 1, 2**31 - 1), f"far more than the {MAX_PIXELS} pixels that a request may have"),
        (claims(0, 5), "can be read"),
        (claims(4096, 16), "times as long as wide"),
        (claims(16, 4096), "times as long as wide"),
        (claims(1000, 1000), "can be read"),
        (png(1, 2, 3)[:60], "can be read"),
        (b"\x89PNG\r\n\x1a\n", "can be read"),
        (b"\xff\xd8\xff\xd9", "can be read"),
        (b"GIF89a" + bytes(40), "can be read"),
        (b"", "can be read"),
    ],
)
def test_what_is_broken_or_too_large_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(RequestInvalid, match=words) as caught:
        decode_image(data)
    assert caught.value.field == "messages"
    assert "\n" not in caught.value.message


JPEG = encoded(Image.radial_gradient("L").resize((64, 64)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
SMALL = png(9, 9, 9)


@settings(max_examples=150)
@given(st.sampled_from([JPEG, SMALL]), st.data())
def test_damage_ends_in_a_picture_or_in_a_refusal(whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(3, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        found = drawn(bytes(damaged[:cut]))
    except RequestInvalid as refused:
        assert refused.field == "messages"
    else:
        assert found.width * found.height <= MAX_PIXELS


def test_pillow_is_loaded_with_the_first_picture_and_not_before(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, agent.engine.genai, agent.engine.vision; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0
