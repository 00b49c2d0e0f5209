"""A GGUF file, dequantised into a checkpoint directory by transformers, once per file and converter version; what its
header says is read and judged before.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path

from contract.errors import BuildRefused
from packager.build.build_cache import have, sweep
from packager.evaluate import conversations, reference_process
from packager.evaluate.jobs import Templates
from packager.sources import gguf_metadata, gguf_process, gguf_tokenizer
from packager.sources.checkpoint import Checkpoint, Pending, inspect_checkpoint, survey_checkpoint
from packager.sources.converted import holds_converted
from packager.sources.jobs import GGUF, GgufFacts, GgufJob
from packager.sources.naming import refuse_stand_in
from packager.subprocess_job import from_json, run_child, to_json

GGUF_MAGIC = b"GGUF"

CONVERTER_REVISION = 4
"""Raised whenever the conversion changes, so that older cache entries are not taken for its result."""

FP32_BYTES = 4
PROCESS_BYTES = 400 * 2**20
"""Anonymous memory of the process that dequantises, beside the weights, all of which it holds in fp32: 962 MiB were
seen for SmolLM2-135M, 513 of them weights."""

OLDER_MAGIC = (b"lmgg", b"tjgg", b"algg", b"fmgg")
"""GGML, GGJT and their kin, before GGUF."""

HEAD_BYTES = 32 * 2**20
"""Of a file, what stands for its header in the cache: the largest vocabularies take 16 MB."""

FACTS_FILE = "header.json"


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
        job = GgufJob(str(path), str(staging), header=True)
        found = run_child(GGUF, job, log, doing="reading the header of the GGUF file").facts
        assert found is not None
        (staging / FACTS_FILE).write_text(to_json(found), "utf-8")

    have(entry, make, mark=FACTS_FILE)
    facts = from_json((entry / FACTS_FILE).read_bytes(), GgufFacts)
    return survey_checkpoint(entry, facts.config, facts.architecture, facts.parameters), facts.templates


def pending_gguf(checkpoint: Checkpoint, cache: Path) -> Pending:
    """What dequantising takes, by the header that ``checkpoint`` is known by; nothing where ``cache`` holds a model of
    that size.
    """
    found = _converting(checkpoint)
    return Pending() if holds_converted(cache, f"*-{_entry_suffix()}", found.disk_bytes) else found


def _converting(checkpoint: Checkpoint) -> Pending:
    size = FP32_BYTES * checkpoint.parameters
    rows, width = (int(checkpoint.config.get(name) or 0) for name in ("vocab_size", "hidden_size"))
    # The largest weight is there twice while it is read.
    return Pending(memory_bytes=PROCESS_BYTES + size + 2 * FP32_BYTES * rows * width, disk_bytes=size)


def _entry_suffix() -> str:
    return f"{importlib.metadata.version('transformers')}-{CONVERTER_REVISION}"


def _version() -> str:
    sources = (gguf_process, gguf_metadata, gguf_tokenizer, reference_process, conversations)
    written = hashlib.sha256("".join(map(inspect.getsource, sources)).encode()).hexdigest()
    return f"{importlib.metadata.version('transformers')} {written}"


def convert_gguf(
    path: Path,
    digest: str,
    surveyed: Checkpoint,
    *,
    cache: Path,
    log: Path,
    on_progress: Callable[[float, float], None],
) -> Checkpoint:
    """The checkpoint made from ``path``, which is ``surveyed``, from ``cache`` if it was made before.

    Raises:
        BuildRefused: transformers cannot read the file, its architecture is not known, or there is too little memory.
        StoreFull: no room for what comes of it.
    """
    from packager.build.estimate import refuse_conversion  # which knows plans, which know how sources are opened

    entry = cache / "checkpoints" / f"{digest[:32]}-{_entry_suffix()}"

    def make(staging: Path) -> None:
        refuse_conversion(_converting(surveyed), cache, "reading the GGUF file")
        run_child(GGUF, GgufJob(str(path), str(staging)), log, on_progress=on_progress)
        inspect_checkpoint(staging)

    have(entry, make)
    return inspect_checkpoint(entry)
