"""What transformers makes of a checkpoint's small files and headers: what every later stage is held against.

Known in seconds, from a process of its own and before a weight is read; kept by the bytes that it depends on.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.chat.files import MORE_TEMPLATES
from packager.build.build_cache import get_or_create, locked, sweep
from packager.evaluate import conversations, corpus, reference_process
from packager.evaluate.conversations import Rendering
from packager.graph import rope
from packager.graph.rope import RopeFacts
from packager.sources.checkpoint import Checkpoint
from packager.sources.headers import Entry, WeightHeaders, read_headers
from packager.subprocess_job import run_child

FILE = "reference.json"


class LoadFaults(Struct, frozen=True):
    """By which names transformers' load of the files would differ from the model."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, list[int], list[int]]]


Spelling = tuple[str, list[int], list[int]]
"""A text and its tokens, without and with what the source's tokenizer puts at a beginning and an end."""


class Templates(Struct, frozen=True):
    """What transformers makes of conversations with a chat template, and the special tokens that it gives that."""

    renderings: list[Rendering] = []
    special_tokens: dict[str, str] = {}


class Reference(Struct, frozen=True):
    """``config`` with every default filled in; ``weights`` with their shapes by name; ``tied`` ones by their source.

    ``faults`` is None for weights that are quantised already, ``rope`` for a model that does not rotate.
    """

    config: dict[str, Any]
    weights: dict[str, list[int]]
    tied: dict[str, str]
    faults: LoadFaults | None
    rope: RopeFacts | None
    spellings: list[Spelling] = []
    templates: Templates = Templates()


def read_templates(path: Path, log: Path, template: str | None = None) -> Templates:
    """What transformers makes of the chat template in ``path``, or of ``template``; no weights need to be there.

    Raises:
        BuildRefused: transformers cannot make sense of the tokenizer.
    """
    job = {"checkpoint": str(path), "template": template, "templates": True}
    value = run_child("packager.evaluate.reference_process", job, log, doing="reading the tokenizer")
    return msgspec.convert(value, Templates)


def read_reference(
    checkpoint: Checkpoint,
    cache: Path,
    log: Path,
    template: str | None = None,
    *,
    headers: WeightHeaders | None = None,
    config: dict[str, Any] | None = None,
) -> Reference:
    """The reference of ``checkpoint`` with ``template`` in place of its own, from ``cache`` if it was read before.

    ``headers`` and ``config`` are those of a checkpoint whose weights, or whose config.json, are not there yet.

    Raises:
        BuildRefused: transformers cannot make sense of the checkpoint.
    """
    cache_dir = cache / "references"
    entries = (headers or read_headers(checkpoint.path)).entries()
    entry = cache_dir / _key(checkpoint, template, entries, config)
    sweep(cache_dir)

    def make(staging: Path) -> None:
        job = {"checkpoint": str(checkpoint.path), "template": template, "weights": entries, "config": config}
        value = run_child("packager.evaluate.reference_process", job, log, doing="reading the configuration")
        (staging / FILE).write_text(json.dumps(value), "utf-8")

    with locked(entry):
        get_or_create(entry, make, mark=FILE)
        return msgspec.json.decode((entry / FILE).read_bytes(), type=Reference)


def _key(checkpoint: Checkpoint, template: str | None, entries: list[Entry], config: dict[str, Any] | None) -> str:
    whole = hashlib.sha256("".join(map(inspect.getsource, (reference_process, rope, corpus, conversations))).encode())
    whole.update(importlib.metadata.version("transformers").encode())
    whole.update(repr(template).encode())
    whole.update(json.dumps([entries, config]).encode())
    for pattern in ("*.json", "*.jinja", f"{MORE_TEMPLATES}/*.jinja"):
        for path in sorted(checkpoint.path.glob(pattern)):
            if not path.name.endswith(".index.json"):  # which says where weights lie, and nothing of what they are
                whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:32]
