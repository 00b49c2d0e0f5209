"""The model builder of onnxruntime-genai, held at arm's length: a child process, offline, its noise in a log."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from packager.child import run_child
from packager.plan import BuildPlan, builder_options
from packager.sources.checkpoint import Checkpoint


def build_graph(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    out: Path,
    log: Path,
    on_progress: Callable[[float, float], None] | None = None,
) -> None:
    """Build ``checkpoint`` into ``out`` as a folder for onnxruntime-genai.

    Raises:
        BuildRefused: the builder failed; the log has its words.
    """
    # The scratch is ours to remove, and beside the output: a builder that is interrupted leaves gigabytes in it.
    with tempfile.TemporaryDirectory(prefix=".builder-", dir=out.parent) as scratch:
        job = {
            "checkpoint": str(checkpoint.path),
            "out": str(out),
            "scratch": scratch,
            "precision": plan.precision,
            "ep": plan.ep,
            "options": builder_options(plan),
        }
        run_child("packager.builder_process", job, log, doing="the model builder", on_progress=on_progress)
