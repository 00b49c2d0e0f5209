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

from contract.chat.files import MORE_TEMPLATES
from packager.build.build_cache import have, sweep
from packager.evaluate import conversations, corpus, reference_process
from packager.evaluate.jobs import REFERENCE, TEMPLATES, Reference, ReferenceJob, Templates, TemplatesJob
from packager.graph import rope
from packager.sources.checkpoint import Checkpoint
from packager.sources.headers import Entry, WeightHeaders, read_headers
from packager.subprocess_job import from_json, run_child, to_json

FILE = "reference.json"


def read_templates(path: Path, log: Path, template: str | None = None) -> Templates:
    """What transformers makes of the chat template in ``path``, or of ``template``; no weights need to be there.

    Raises:
        BuildRefused: transformers cannot make sense of the tokenizer.
    """
    return run_child(TEMPLATES, TemplatesJob(str(path), template), log)


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
        found = run_child(REFERENCE, ReferenceJob(str(checkpoint.path), template, entries, config), log)
        (staging / FILE).write_text(to_json(found), "utf-8")

    have(entry, make, mark=FILE)
    return from_json((entry / FILE).read_bytes(), Reference)


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
