"""Graphs kept by what they were built from, so that a build that was interrupted or refused later goes on there.

An entry lives until its bundle is finished: it is for the build that failed at a quality gate or was interrupted while
it measured, not a store.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from packager.build import model_builder_process as builder_process
from packager.build import plan, workarounds
from packager.build.build_cache import get_or_create, locked, sweep
from packager.build.model_builder import BuilderReport, build_graph
from packager.build.plan import BuildPlan, builder_options
from packager.evaluate import ends
from packager.evaluate.evidence import BUILD_TOOLS, tool_versions
from packager.evaluate.text import EvalText
from packager.graph import embedding, rope, slots
from packager.quantize import streaming
from packager.sources import vocabulary
from packager.sources.checkpoint import Checkpoint

LABELS = ("source", "name", "version", "epoch", "license", "arch", "quality", "origin", "behaviour", "source_sha256")
"""What a plan says that does not reach the graph, or does so through the source's digest."""

CODE = (builder_process, embedding, ends, plan, rope, slots, streaming, vocabulary, workarounds)
"""What decides a graph's bytes beside the builder itself."""

REPORT = "report.json"
MODEL = "model"


def graph_key(build_plan: BuildPlan, digest: str) -> str:
    """Names everything that decides a graph's bytes: the source's digest, the options, the tools, our own mending."""
    choices = msgspec.to_builtins(build_plan, enc_hook=str)
    document = {
        "source": digest,
        "choices": {name: value for name, value in choices.items() if name not in LABELS},
        "options": builder_options(build_plan),
        "tools": tool_versions(BUILD_TOOLS),
        "code": [inspect.getsource(module) for module in CODE],
    }
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()[:32]


def build_or_resume(
    checkpoint: Checkpoint,
    digest: str,
    build_plan: BuildPlan,
    out: Path,
    *,
    cache: Path,
    log: Path,
    on_progress: Callable[[float, float], None],
    text: EvalText | None = None,
) -> tuple[BuilderReport, Path]:
    """The graph of ``checkpoint`` in ``out``, from ``cache`` if it was built before; the entry to drop at the end.

    ``text`` is what the scales of an INT8 cache are measured on; ``digest`` must name it too.

    Raises:
        BuildRefused: the builder failed; the log has its words.
    """
    cache_dir = cache / "graphs"
    entry = cache_dir / graph_key(build_plan, digest)
    sweep(cache_dir)

    def make(staging: Path) -> None:
        report = build_graph(checkpoint, build_plan, staging / MODEL, log, on_progress=on_progress, text=text)
        (staging / REPORT).write_bytes(msgspec.json.encode(report))

    with locked(entry):
        get_or_create(entry, make, mark=REPORT)
        link_tree(entry / MODEL, out)
        return msgspec.json.decode((entry / REPORT).read_bytes(), type=BuilderReport), entry


def link_tree(source: Path, target: Path) -> None:
    """Every file of ``source`` in ``target`` too, by a link where the file system can, by a copy elsewhere."""
    for path in sorted(source.rglob("*")):
        where = target / path.relative_to(source)
        if path.is_dir():
            where.mkdir(parents=True, exist_ok=True)
            continue
        try:
            os.link(path, where)
        except OSError:
            shutil.copyfile(path, where)


def drop_graph(entry: Path) -> None:
    """Forget a kept graph."""
    with locked(entry):
        shutil.rmtree(entry, ignore_errors=True)
