"""A GGUF file, dequantised into a checkpoint directory by transformers, once per file and converter version; what its
header says is read and judged before.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused
from packager.build.build_cache import get_or_create, locked, sweep
from packager.evaluate import conversations, reference_process
from packager.evaluate.reference import Templates
from packager.sources import gguf_metadata, gguf_process, gguf_tokenizer
from packager.sources.checkpoint import Checkpoint, inspect_checkpoint, survey_checkpoint
from packager.sources.naming import refuse_stand_in
from packager.subprocess_job import run_child

GGUF_MAGIC = b"GGUF"

CONVERTER_REVISION = 3
"""Raised whenever the conversion changes, so that older cache entries are not taken for its result."""


OLDER_MAGIC = (b"lmgg", b"tjgg", b"algg", b"fmgg")
"""GGML, GGJT and their kin, before GGUF."""

HEAD_BYTES = 32 * 2**20
"""Of a file, what stands for its header in the cache: the largest vocabularies take 16 MB."""

FACTS_FILE = "header.json"


class _Facts(Struct):
    """What the process that read the header said; its small files lie beside."""

    config: dict[str, Any]
    architecture: str
    parameters: int
    templates: Templates


def check_gguf(path: Path) -> None:
    """Refuse a file that is none.

    Raises:
        BuildRefused: with what it seems to be.
    """
    refuse_stand_in(path)
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic in OLDER_MAGIC:
        raise BuildRefused(f"{path} is of a format older than GGUF; fetch the model as GGUF, or convert its checkpoint")
    if magic != GGUF_MAGIC:
        raise BuildRefused(f"{path} is not a GGUF file; name a .gguf file or a checkpoint directory")


def survey_gguf(path: Path, cache: Path, log: Path) -> tuple[Checkpoint, Templates]:
    """What will come of ``path`` by its header: configuration, tokenizer, template, card, names and shapes of weights.

    Raises:
        BuildRefused: it cannot become a bundle, or is not whole.
    """
    with path.open("rb") as file:
        head = hashlib.sha256(f"{path.stat().st_size} {_version()} ".encode() + file.read(HEAD_BYTES))
    kept = cache / "gguf-headers"
    entry = kept / head.hexdigest()[:32]
    sweep(kept)

    def make(staging: Path) -> None:
        job = {"gguf": str(path), "out": str(staging), "header": True}
        value = run_child("packager.sources.gguf_process", job, log, doing="reading the header of the GGUF file")
        (staging / FACTS_FILE).write_text(json.dumps(value), "utf-8")

    with locked(entry):
        get_or_create(entry, make, mark=FACTS_FILE)
        facts = msgspec.json.decode((entry / FACTS_FILE).read_bytes(), type=_Facts)
        found = survey_checkpoint(entry, facts.config, facts.architecture, facts.parameters)
    return found, facts.templates


def _version() -> str:
    sources = (gguf_process, gguf_metadata, gguf_tokenizer, reference_process, conversations)
    written = hashlib.sha256("".join(map(inspect.getsource, sources)).encode()).hexdigest()
    return f"{importlib.metadata.version('transformers')} {written}"


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
        job = {"gguf": str(path), "out": str(staging), "header": False}
        run_child("packager.sources.gguf_process", job, log, doing="reading the GGUF file", on_progress=on_progress)
        inspect_checkpoint(staging)

    with locked(entry):
        get_or_create(entry, make)
    return inspect_checkpoint(entry)
