"""Pictures that code draws, and the part of the report that shows them."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest

from contract.bundle.manifest import MAX_CANARY_PICTURE
from packager.report.pictures import picture_section
from packager.vision.pictures import BLUE, GREEN, GREY, RED, SCENES, YELLOW, canary_picture, draw, encode_png


def opened(data: bytes) -> Any:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("side", [96, 672, 100])
def test_what_is_drawn_is_what_is_in_the_file(name: str, side: int) -> None:
    picture = draw(name, side)
    assert (picture.shape, picture.dtype) == ((side, side, 3), np.uint8)
    assert np.array_equal(opened(encode_png(picture)), picture)
    assert np.array_equal(draw(name, side), picture)
    assert picture.std(axis=(0, 1)).min() > 20, "it has something to see in every colour"


def test_the_canarys_picture_is_small_and_has_the_colours_that_are_asked_about() -> None:
    data = canary_picture()
    assert len(data) < 1000 < MAX_CANARY_PICTURE
    colours = {tuple(colour) for colour in opened(data).reshape(-1, 3).tolist()}
    assert colours == {GREY, RED, GREEN, BLUE, YELLOW}


QUALITY: dict[str, Any] = {
    "vision": {
        "encoder": "fp16",
        "cosine": 0.99999,
        "rejected": {"int8": 0.912345},
        "bytes": {"model.onnx": 2_600_000_000, "vision.onnx": 620_000_000, "embedding.onnx": 98_000_000},
        "features": [{"name": "shapes", "tokens": 757, "furthest": 0.4, "spread": 7.95, "cosine": 0.99999}],
    },
    "pictures": {"tokens": 48, "kl": 0.0123, "top1_agreement": 0.9375},
    "looked": [
        {
            "picture": "shapes",
            "question": "What is it?",
            "source": "A <disc>.",
            "bundle": "A disc & more.",
            "kl": 0.0123,
        }
    ],
}


def test_the_report_shows_pictures_answers_and_what_each_part_takes() -> None:
    html = picture_section(QUALITY)
    shown = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    assert shown is not None
    assert np.array_equal(opened(base64.b64decode(shown[1])), draw("shapes", 168))
    for said in (
        "What is it?", "A &lt;disc&gt;.", "A disc &amp; more.", "0.0123", "93.8 %", "2,600.0 MB", "620.0 MB", "98.0 MB",
        "0.999990", "fp16", "int8 was not taken: cosine 0.912345",
    ):  # fmt: skip
        assert said in html, said


def test_the_report_of_a_bundle_that_reads_has_no_pictures() -> None:
    assert picture_section({"kl": 0.1}) == ""
    unasked = {"vision": QUALITY["vision"]}
    assert "the source cannot be run" in picture_section(unasked)
