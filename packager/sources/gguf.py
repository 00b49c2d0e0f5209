"""A GGUF file, dequantised into a checkpoint directory by transformers, once per file and converter version."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from packager.child import run_child
from packager.shelf import held, make_once
from packager.sources.checkpoint import Checkpoint, inspect_checkpoint

GGUF_MAGIC = b"GGUF"

CONVERTER_REVISION = 3
"""Raised whenever the conversion changes, so that older cache entries are not taken for its result."""


def convert_gguf(
    path: Path, digest: str, cache: Path, log: Path, on_progress: Callable[[float, float], None]
) -> Checkpoint:
    """The checkpoint made from ``path``, from ``cache`` if it was made before.

    Raises:
        BuildRefused: transformers cannot read the file, or its architecture is not known.
    """
    version = importlib.metadata.version("transformers")
    entry = cache / "checkpoints" / f"{digest[:32]}-{version}-{CONVERTER_REVISION}"

    def make(staging: Path) -> None:
        job = {"gguf": str(path), "out": str(staging)}
        run_child("packager.sources.gguf_process", job, log, doing="reading the GGUF file", on_progress=on_progress)
        inspect_checkpoint(staging)

    with held(entry):
        make_once(entry, make)
    return inspect_checkpoint(entry)
