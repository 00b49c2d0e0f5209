"""The model builder of onnxruntime-genai, held at arm's length: a child process, offline, its noise in a log."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from packager.build.jobs import BUILDER, BuilderJob, BuilderReport
from packager.build.kv_cache import SCHEME
from packager.build.plan import BuildPlan, builder_options
from packager.sources.checkpoint import Checkpoint
from packager.subprocess_job import run_child


def build_graph(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    out: Path,
    log: Path,
    *,
    on_progress: Callable[[float, float], None] | None = None,
    scales: Path | None = None,
    shared: Path | None = None,
) -> BuilderReport:
    """Build ``checkpoint`` into ``out`` as a folder for onnxruntime-genai; ``scales`` are those of an INT8 cache, and
    the weights those of the graph in ``shared`` where they are the same.

    Raises:
        BuildRefused: the builder failed; the log has its words.
    """
    more = [] if scales is None else [f"kv_cache_quant_scheme={SCHEME}", f"kv_cache_scale_file={scales}"]
    out.mkdir(exist_ok=True)
    # The scratch is ours to remove, and beside the output: a builder that is interrupted leaves gigabytes in it.
    with tempfile.TemporaryDirectory(prefix=".builder-", dir=out.parent) as scratch:
        job = BuilderJob(
            checkpoint=str(checkpoint.path),
            out=str(out),
            scratch=scratch,
            precision=plan.precision,
            ep=plan.ep,
            options=[*builder_options(plan), *more, *(["hf_remote=true"] if plan.origin.trust_code else [])],
            adapter_slots=plan.adapter_slots,
            embedding=plan.own_embedding,
            shared=None if shared is None else str(shared),
        )
        return run_child(BUILDER, job, log, on_progress=on_progress)
