"""A key-value cache in INT8: a quarter of its memory, each channel of each layer with a scale of its own.

The scales are measured on a first build of the same model whose cache is plain (by onnxruntime-genai's own calibration)
and go into the second one. Keys are measured by the norm of the pairs that rope rotates, so that scales hold at
positions beyond those that were read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from packager.build.jobs import SCALES, ScalesJob
from packager.evaluate.text import EvalText
from packager.sources.checkpoint import Checkpoint
from packager.subprocess_job import run_child

SCHEME = "int8_per_channel"

SEQUENCES = 24
LENGTH = 512
PERCENTILE = 99.99
"""The calibration's own defaults; the rare value above is clipped."""

OWN_TEXT = "passages of onnxruntime-genai"
"""Sixteen encyclopaedic paragraphs that come with the calibration."""


def describe_scales(text: EvalText | None) -> dict[str, Any]:
    """What provenance says of how the scales were measured."""
    named = {"text": OWN_TEXT} if text is None else {"text": text.name, "sha256": text.sha256}
    return {"scheme": SCHEME, **named, "sequences": SEQUENCES, "length": LENGTH, "percentile": PERCENTILE}


def scaled_digest(digest: str, text: EvalText | None) -> str:
    """The source's ``digest`` with the text that decides the scales."""
    return hashlib.sha256(f"{digest} {describe_scales(text)}".encode()).hexdigest()


def measure_scales(
    model_dir: Path,
    checkpoint: Checkpoint,
    text: EvalText | None,
    out: Path,
    log: Path,
    *,
    on_progress: Callable[[float, float], None],
) -> None:
    """Write the scales of the model in ``model_dir``, whose cache is plain, to ``out`` for the builder to read.

    Raises:
        BuildRefused: it cannot be run, or its keys and values are not finite.
    """
    config = read_genai_config((model_dir / CONFIG_FILE).read_bytes())
    job = ScalesJob(
        model=str(model_dir / config.filename),
        tokenizer=str(checkpoint.path),
        out=str(out),
        scheme=SCHEME,
        percentile=PERCENTILE,
        sequences=SEQUENCES,
        length=min(LENGTH, config.context_length),
        layers=config.layers,
        heads=config.kv_heads,
        head_size=config.head_size,
        text=None if text is None else text.text,
    )
    run_child(SCALES, job, log, on_progress=on_progress)
