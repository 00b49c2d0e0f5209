"""The model builder of onnxruntime-genai, held at arm's length: a child process, offline, its noise in a log."""

from __future__ import annotations

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
    job = {
        "checkpoint": str(checkpoint.path),
        "out": str(out),
        "precision": plan.precision,
        "ep": plan.ep,
        "options": builder_options(plan),
    }
    run_child("packager.builder_process", job, log, doing="the model builder", on_progress=on_progress)
