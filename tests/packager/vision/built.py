"""A tiny seeing model built in this process: what a build's processes do, whose libraries take longer to load."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from packager.build.plan import SEEING
from packager.sources import text_only
from packager.sources.opening import SourceOptions, convert_directory
from packager.sources.text_config_process import resolve
from packager.subprocess_job import Reporter
from packager.vision.jobs import VisionJob
from packager.vision.process import add_vision
from tests.packager.families import build_here


def build_parts(checkpoint: Path, out: Path) -> None:
    """Decoder, embedding and encoder of ``checkpoint`` in ``out``, in fp32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_only, "run_child", lambda task, job, log, **more: resolve(job, nowhere()))
        log, cache = out.parent / "log", out.parent / "cache"
        text = convert_directory(checkpoint, "0" * 64, cache, log, SourceOptions(text_only=True))
    build_here(text.path, out, "fp32", options=SEEING)
    add_vision(VisionJob(str(checkpoint), str(out), "float", "float"), nowhere())


def nowhere() -> Reporter:
    """One whose reports nobody reads."""
    return Reporter(os.open(os.devnull, os.O_WRONLY))


class Runtime:
    """onnxruntime-genai on a folder: its processor, and logits of what that made."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai as og

        self._og = og
        self.model = og.Model(str(folder))
        self.processor = self.model.create_multimodal_processor()

    def look(self, prompt: str, *pictures: bytes) -> Any:
        """The tensors of a prompt that says where ``pictures`` (PNG) stand."""
        if not pictures:
            return self.processor(prompt)
        return self.processor(prompt, images=self._og.Images.open_bytes(*pictures))

    def logits(self, tensors: Any) -> npt.NDArray[np.float32]:
        """At every position."""
        generator = self.start(tensors)
        return np.array(generator.get_output("logits")[0])

    def start(self, tensors: Any, most: int = 16) -> Any:
        """A generator that has read them, and may go on for ``most`` tokens."""
        params = self._og.GeneratorParams(self.model)
        length = tensors["input_ids"].as_numpy().shape[1]
        params.set_search_options(max_length=length + most, do_sample=False)
        generator = self._og.Generator(self.model, params)
        generator.set_inputs(tensors)
        return generator


def save_png(picture: Any, **options: Any) -> bytes:
    """``picture`` (Pillow's) as a file."""
    target = io.BytesIO()
    picture.save(target, "PNG", **options)
    return target.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Any:
    """Slopes and noise."""
    from PIL import Image

    random = np.random.default_rng(seed)
    slopes = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 100, width))
    return Image.fromarray((slopes[..., None] + random.integers(0, 36, (height, width, 3))).astype(np.uint8))


def kinds() -> dict[str, tuple[bytes, Any]]:
    """Pictures as they are sent, and what they show: upright, in RGB."""
    from PIL import Image, ImageOps

    shown = noise(120, 160, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = shown.copy()
    clear.putalpha(Image.linear_gradient("L").resize(shown.size))
    on_white = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), clear).convert("RGB")
    sizes = {
        "square": (96, 96), "portrait": (200, 120), "landscape": (120, 200), "very wide": (16, 480),
        "very high": (480, 16), "tiny": (3, 4), "large": (700, 900),
    }  # fmt: skip
    found = {name: (save_png(noise(*size)), noise(*size)) for name, size in sizes.items()}
    turned = save_png(shown, exif=exif)
    return found | {
        "grey": (save_png(shown.convert("L")), shown.convert("L").convert("RGB")),
        "alpha": (save_png(clear), on_white),
        "turned by EXIF": (turned, ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).convert("RGB")),
    }


def change_weights(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """What rewrites a checkpoint's weights, of whatever type."""

    def rewrite(directory: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = directory / "model.safetensors"
        tensors = dict(load_file(file))
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return rewrite


def drop(name: str) -> Callable[[Path], None]:
    """What takes one weight out."""
    return change_weights(lambda tensors: tensors.pop(name))


def resize(name: str, *shape: int) -> Callable[[Path], None]:
    """What gives one weight another shape, or puts one in."""

    def change(tensors: dict[str, Any]) -> None:
        import torch

        tensors[name] = torch.zeros(shape)

    return change_weights(change)
