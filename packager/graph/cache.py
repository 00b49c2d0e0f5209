"""Graphs kept by what they were built from, so that a build that was interrupted or refused later goes on there.

An entry lives until its bundle is finished: it is for the build that failed at a quality gate or was interrupted while
it measured, not a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from packager import vision as vision_package
from packager.build import model_builder_process as builder_process
from packager.build import plan, workarounds
from packager.build.build_cache import drop, get_or_create, locked, sweep
from packager.build.jobs import BuilderReport
from packager.build.kv_cache import measure_scales, scaled_digest
from packager.build.model_builder import build_graph
from packager.build.plan import BuildPlan, builder_options
from packager.evaluate import ends
from packager.evaluate.conformance import expected_windows
from packager.evaluate.evidence import BUILD_TOOLS, tool_versions
from packager.evaluate.text import EvalText
from packager.graph import embedding, rope, shared_data, slots
from packager.graph.shared_data import link_tree
from packager.quantize import streaming
from packager.sources import vocabulary
from packager.sources.checkpoint import Checkpoint
from packager.sources.vision_part import VisionPart
from packager.vision.proof import build_vision

LABELS = ("source", "name", "version", "epoch", "license", "arch", "quality", "origin", "behaviour", "source_sha256")
"""What a plan says that does not reach the graph, or does so through the source's digest."""

CODE = (builder_process, embedding, ends, plan, rope, shared_data, slots, streaming, vocabulary, workarounds)
"""What decides a graph's bytes beside the builder itself, and beside :mod:`packager.vision` for a model that sees."""

REPORT = "report.json"
MODEL = "model"
SCALES = "scales.json"


def graph_key(build_plan: BuildPlan, digest: str) -> str:
    """Names everything that decides a graph's bytes: the source's digest, the options, the tools, our own mending."""
    choices = msgspec.to_builtins(build_plan, enc_hook=str)
    document = {
        "source": digest,
        "choices": {name: value for name, value in choices.items() if name not in LABELS},
        "options": builder_options(build_plan),
        "tools": tool_versions(BUILD_TOOLS),
        "code": [inspect.getsource(module) for module in CODE],
        "vision": _vision_code() if build_plan.sees else [],
    }
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()[:32]


def _vision_code() -> list[str]:
    """All of that package, by whose families graphs are written and types of weights chosen."""
    directory = Path(inspect.getfile(vision_package)).parent
    return [path.read_text("utf-8") for path in sorted(directory.glob("*.py"))]


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
    vision: VisionPart | None = None,
) -> tuple[BuilderReport, list[Path]]:
    """The graph of ``checkpoint`` in ``out``, from ``cache`` if it was built before; the entries to drop at the end.

    The scales of an INT8 cache are measured on ``text``, with the graph whose cache is plain, which is kept as well.
    The graphs of ``vision``, which ``digest`` must name too, lie beside the decoder.

    Raises:
        BuildRefused: the builder failed; the log has its words.
    """
    cache_dir = cache / "graphs"
    sweep(cache_dir)

    with contextlib.ExitStack() as locks:  # a build beside us drops its entries when it has finished

        def build(asked: BuildPlan, name: str, scales: Path | None = None, shared: Path | None = None) -> Path:
            def make(staging: Path) -> None:
                report = build_graph(
                    checkpoint, asked, staging / MODEL, log, on_progress=on_progress, scales=scales, shared=shared
                )
                if vision is not None and asked.sees:
                    report = replace(report, vision=build_vision(vision, asked, staging / MODEL, log))
                (staging / REPORT).write_bytes(msgspec.json.encode(report))

            locks.enter_context(locked(cache_dir / name))
            get_or_create(cache_dir / name, make, mark=REPORT)
            return cache_dir / name

        if build_plan.kv != "int8":
            entries = [build(build_plan, graph_key(build_plan, digest))]
        else:
            # The runtime runs no INT8 caches that are as long as a window, nor plain ones on an empty past.
            build_plan = replace(build_plan, whole_caches=build_plan.sees or _has_windows(checkpoint))
            # One that reads tokens, and keeps as much of them as the one that reads embeddings.
            plain_plan = replace(build_plan, kv="float", sees=False)
            plain = build(plain_plan, graph_key(plain_plan, digest))
            name = graph_key(build_plan, scaled_digest(digest, text))
            measured = cache_dir / f"{name}.{SCALES}"
            locks.enter_context(locked(measured))
            get_or_create(
                measured,
                lambda made: measure_scales(
                    plain / MODEL, checkpoint, text, made / SCALES, log, on_progress=on_progress
                ),
                mark=SCALES,
            )
            entries = [build(build_plan, name, measured / SCALES, plain / MODEL), measured, plain]
        link_tree(entries[0] / MODEL, out)
        return msgspec.json.decode((entries[0] / REPORT).read_bytes(), type=BuilderReport), entries


def _has_windows(checkpoint: Checkpoint) -> bool:
    """Whether layers of ``checkpoint`` would have caches as long as a window."""
    config = checkpoint.config
    return any(window > 0 for window in expected_windows(config, config.get("num_hidden_layers", 1)))


def drop_graph(entry: Path) -> None:
    """Forget a kept graph, unless another build is at it, which forgets it in its turn."""
    drop(entry, wait=False)
