"""Asking source and bundle about pictures: what is compared, and what of it becomes evidence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from packager.build.build_cache import sweep
from packager.evaluate.check import host_threads
from packager.sources.checkpoint import Checkpoint
from packager.sources.vision_part import VisionPart
from packager.subprocess_job import run_child
from packager.vision.family import EMBEDDING_FILE, ENCODER_FILE
from packager.vision.jobs import COMPARE, ROWS, SOURCE_LOOK, CompareJob, LookJob, PictureAnswers, VisionProof

CASES = (("shapes", "What is in this picture?"), ("stripes", "Describe the colours of this picture."))
"""A picture of :mod:`packager.vision.pictures`, and what is asked about it."""

ANSWER_TOKENS = 24
"""Of an answer: with two, some fifty positions. Reading a picture takes longer than writing them."""


def ask_about_pictures(
    vision: VisionPart,
    checkpoint: Checkpoint,
    staged: Path,
    *,
    cache: Path,
    log: Path,
    on_progress: Callable[[float, float], None] | None = None,
) -> PictureAnswers:
    """Both answers to every case, one model after the other: of ``vision`` with its text model ``checkpoint``, and of
    the folder ``staged``.

    Raises:
        BuildRefused: one of them cannot be asked.
    """
    whole, text = str(vision.directory), str(checkpoint.path)
    sweep(cache, ".pictures-*")
    with tempfile.TemporaryDirectory(prefix=".pictures-", dir=cache) as scratch:
        heard = run_child(
            SOURCE_LOOK, LookJob(whole, text, list(CASES), ANSWER_TOKENS, scratch), log, on_progress=on_progress
        )
        job = CompareJob(
            checkpoint=whole,
            model=str(staged),
            threads=host_threads(),
            cases=heard.cases,
            rows=str(Path(scratch) / ROWS),
            vocabulary=heard.vocabulary,
            limit=ANSWER_TOKENS,
        )
        return run_child(COMPARE, job, log, on_progress=on_progress)


def describe_vision(proof: VisionProof, folder: Path) -> dict[str, Any]:
    """For the manifest: the encoder's type, what was compared, and the bytes of each part."""
    sizes = {
        name: sum(path.stat().st_size for path in folder.glob(f"{name}*"))
        for name in ("model.onnx", ENCODER_FILE, EMBEDDING_FILE)
    }
    found: dict[str, Any] = {"encoder": proof.encoder, "cosine": proof.cosine, "bytes": sizes}
    found["features"] = [
        {**msgspec.to_builtins(seen), **{key: float(f"{getattr(seen, key):.3g}") for key in ("furthest", "spread")}}
        for seen in proof.pictures
    ]
    return found | ({"rejected": proof.rejected} if proof.rejected else {})
