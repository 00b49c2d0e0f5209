"""What the source model itself says: its logits over the text and its answers, from a process of its own.

Kept in the cache by the digests of checkpoint and text, so that a second build of the same source does not pay for it
again. Logits are kept as half-precision logarithms of probabilities: what that rounds away is below 1e-5 nats.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import asdict

from packager.build.build_cache import forget_oldest, have
from packager.evaluate.jobs import SOURCE, SourceJob, SourceResult, SourceView
from packager.evaluate.text import EvalText
from packager.sources.checkpoint import Checkpoint, digest_directory
from packager.subprocess_job import from_json, run_child, to_json

REVISION = 3
"""Raised whenever the stored form changes, so that older cache entries are not taken for it."""

KEPT = 4
"""Entries in the cache; one of a 50,000-token vocabulary and a thousand positions is 100 MB."""

DEFAULT_TOKENS = 1024
"""Positions of the reference text: the standard error of a mean KL is then about 3 %, at ten seconds for a model of
135 M parameters on two cores."""

EVAL_TOKENS = 4096
"""Positions of a text of one's own."""

LEAST_TOKENS = 64
"""Fewer say nothing."""

FILE = "source.json"
ROWS = "logits.f16"


def view_source(
    checkpoint: Checkpoint,
    text: EvalText,
    questions: Sequence[tuple[str, int]],
    cache: Path,
    log: Path,
    *,
    tokens: int = DEFAULT_TOKENS,
    on_progress: Callable[[float, float], None] | None = None,
) -> SourceView:
    """The logits of ``checkpoint`` over ``text`` and its greedy answers to ``questions`` (each with its token limit).

    Raises:
        BuildRefused: transformers cannot run the source, or the text is too short.
        StoreFull: no room in the cache.
    """
    versions = [importlib.metadata.version(name) for name in ("transformers", "torch")]
    key = [digest_directory(checkpoint.path), text.sha256, list(questions), tokens, REVISION, versions]
    entry = cache / "source-views" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    def make(staging: Path) -> None:
        job = SourceJob(str(checkpoint.path), text.text, list(questions), tokens, LEAST_TOKENS, str(staging))
        (staging / FILE).write_text(to_json(run_child(SOURCE, job, log, on_progress=on_progress)), "utf-8")

    have(entry, make, mark=FILE)
    forget_oldest(entry, KEPT)
    found = from_json((entry / FILE).read_bytes(), SourceResult)
    return SourceView(**asdict(found), rows=entry / ROWS)
