"""The model builder of onnxruntime-genai, held at arm's length: a child process, offline, its noise in a log."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from packager.child import run_child
from packager.plan import BuildPlan, builder_options
from packager.sources.checkpoint import Checkpoint


class BuilderReport(Struct, frozen=True):
    """What the builder read: ``config`` with every default filled in; the names of ``workarounds`` that it needed."""

    config: dict[str, Any]
    workarounds: list[str]


def build_graph(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    out: Path,
    log: Path,
    on_progress: Callable[[float, float], None] | None = None,
) -> BuilderReport:
    """Build ``checkpoint`` into ``out`` as a folder for onnxruntime-genai.

    Raises:
        BuildRefused: the builder failed; the log has its words.
    """
    out.mkdir(exist_ok=True)
    # The scratch is ours to remove, and beside the output: a builder that is interrupted leaves gigabytes in it.
    with tempfile.TemporaryDirectory(prefix=".builder-", dir=out.parent) as scratch:
        job = {
            "checkpoint": str(checkpoint.path),
            "out": str(out),
            "scratch": scratch,
            "precision": plan.precision,
            "adapter_slots": plan.adapter_slots,
            "ep": plan.ep,
            "options": [*builder_options(plan), *(["hf_remote=true"] if plan.origin.trust_code else [])],
        }
        value = run_child("packager.builder_process", job, log, doing="the model builder", on_progress=on_progress)
    return msgspec.convert(value, BuilderReport)
