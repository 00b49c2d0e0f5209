"""Asking source and bundle about pictures: what is compared, and what of it becomes evidence."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from packager.build.build_cache import forget_oldest, have
from packager.evaluate.check import host_threads
from packager.sources.checkpoint import Checkpoint
from packager.sources.vision_part import VisionPart
from packager.subprocess_job import from_json, run_child, to_json
from packager.vision.family import EMBEDDING_FILE, ENCODER_FILE
from packager.vision.jobs import (
    COMPARE,
    ROWS,
    SOURCE_LOOK,
    CompareJob,
    LookJob,
    PictureAnswers,
    SourceLook,
    VisionProof,
)

CASES = (("shapes", "What is in this picture?"), ("stripes", "Describe the colours of this picture."))
"""A picture of :mod:`packager.vision.pictures`, and what is asked about it."""

ANSWER_TOKENS = 24
"""Of an answer: with two, some fifty positions. Reading a picture takes longer than writing them."""


REVISION = 1
"""Raised whenever what is asked, or how it is kept, changes."""

KEPT = 4
"""Entries in the cache; one has some 50 rows of the vocabulary, 3 to 30 MB."""

HEARD = "heard.json"


class SeeingSource(NamedTuple):
    """A source of ``digest`` that sees: ``vision`` with its text model ``checkpoint``."""

    vision: VisionPart
    checkpoint: Checkpoint
    digest: str


def ask_about_pictures(
    source: SeeingSource,
    staged: Path,
    *,
    cache: Path,
    log: Path,
    on_progress: Callable[[float, float], None] | None = None,
) -> PictureAnswers:
    """Both answers to every case, one model after the other: of ``source``, kept in the cache since its graph may be
    built more than once, and of the folder ``staged``.

    Raises:
        BuildRefused: one of them cannot be asked.
        StoreFull: no room in the cache.
    """
    entry = _ask_source(source, cache, log, on_progress)
    heard = from_json((entry / HEARD).read_bytes(), SourceLook)
    job = CompareJob(
        checkpoint=str(source.vision.directory),
        model=str(staged),
        threads=host_threads(),
        cases=heard.cases,
        rows=str(entry / ROWS),
        vocabulary=heard.vocabulary,
        limit=ANSWER_TOKENS,
    )
    return run_child(COMPARE, job, log, on_progress=on_progress)


def _ask_source(
    source: SeeingSource, cache: Path, log: Path, on_progress: Callable[[float, float], None] | None
) -> Path:
    """The cache's entry with what the source said."""
    versions = [importlib.metadata.version(name) for name in ("transformers", "torch")]
    key = [source.digest, list(CASES), ANSWER_TOKENS, REVISION, versions]
    entry = cache / "picture-views" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    def make(staging: Path) -> None:
        whole, text = str(source.vision.directory), str(source.checkpoint.path)
        job = LookJob(whole, text, list(CASES), ANSWER_TOKENS, str(staging))
        (staging / HEARD).write_text(to_json(run_child(SOURCE_LOOK, job, log, on_progress=on_progress)), "utf-8")

    have(entry, make, mark=HEARD)
    forget_oldest(entry, KEPT)
    return entry


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
