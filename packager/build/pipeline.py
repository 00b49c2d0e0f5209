"""The whole build, as a list: source, graph, proof, check, evidence, bundle."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.bundle.manifest import Behaviour
from contract.errors import BuildRefused, StoreBroken
from contract.system.durable import translate
from packager.build.behaviour import complete_behaviour
from packager.build.build_cache import using
from packager.build.bundle import BuiltBundle, finish_bundle, staging
from packager.build.cache import bound_cache
from packager.build.describe import compose_manifest, short_provenance
from packager.build.disk import can_link
from packager.build.estimate import Estimate, available_memory, estimate_build, refuse_what_cannot_fit
from packager.build.kv_cache import describe_scales
from packager.build.kv_choice import MadeGraph, make_with_measured_cache, settle_kv
from packager.build.plan import CALIBRATED, BuildPlan, builder_options, check_plan, check_source, settle_quantizer
from packager.build.progress import BuildProgress, SilentProgress
from packager.build.recipe import record_build
from packager.evaluate.assessment import Assessment, EvaluationSpec, evaluate, prepare_evaluation, source_logits
from packager.evaluate.conformance import check_conformance, compare_ends
from packager.evaluate.evidence import (
    EVIDENCE_DIR,
    describe_host,
    describe_stops,
    quality_of,
    write_evidence,
)
from packager.evaluate.logits import compare_logits, compare_workarounds
from packager.evaluate.text import EvalText
from packager.graph.cache import build_or_resume, drop_graph
from packager.graph.facts import GraphFacts, read_back
from packager.graph.not_executed import NOT_RUN, not_executed_result
from packager.graph.rope_check import compare_rope
from packager.quantize.calibrate import calibrate_checkpoint, describe_calibration, read_calibration, require_library
from packager.report import write_report
from packager.sources.checkpoint import CARD_FILE, Checkpoint
from packager.sources.families import family_of
from packager.sources.opening import OpenedSource, open_source
from packager.sources.shape import read_shape
from packager.vision.looking import SeeingSource, ask_about_pictures, describe_vision

STAGES = 7


def default_cache() -> Path:
    """Where converted checkpoints and logs are kept: ``EDGE_CACHE``, else the user's cache directory."""
    named = os.environ.get("EDGE_CACHE")
    if named:
        return Path(named).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-bundle"


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Errors of the operating system as ours, naming the file: a full disk is no fault of the source."""
    try:
        yield
    except PermissionError as error:
        raise StoreBroken(
            f"{doing} failed: {_file_of(error)} is not for this user to read or write; change its permissions, or do "
            "this as another user"
        ) from error
    except OSError as error:
        raise translate(error, doing if error.filename is None else f"{doing} ({_file_of(error)})") from error


def _file_of(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    # Of a copy, the one that is read and the one that is written: only that one can find its disk full.
    name = error.filename2 if full and error.filename2 is not None else error.filename
    return "a file" if name is None else os.fsdecode(name)


def build_bundle(
    plan: BuildPlan, out: Path, progress: BuildProgress | None = None, *, cache: Path | None = None
) -> BuiltBundle:
    """Build ``plan`` into the directory ``out``, which must not exist yet; nothing is left of a build that fails.

    Raises:
        UsageError: the plan or ``out`` make no sense.
        BuildRefused: the source cannot be built, or the build is not what was asked for.
        BundleRefused: what was built could not be installed anywhere.
        StoreFull, StoreBroken: the disk.
    """
    spec, calibration = _read_inputs(plan)
    progress, cache = progress or SilentProgress(), cache or default_cache()
    log = cache / "logs" / f"{plan.name}-{plan.version}.log"
    with disk_errors("building"), using(), staging(out) as staged:
        log.unlink(missing_ok=True)
        source, plan, quantizer, _ = _open(plan, out, cache, log, progress)
        buildable, key = source.checkpoint, source.digest
        progress.stage(2, STAGES, "comparing two layers with the source", cache)
        known, advance = source.reference, progress.advance
        shown = compare_logits(buildable, key, known, cache=cache, log=log, on_progress=advance)
        progress.message(str(shown))
        progress.stage(3, STAGES, f"building {plan.precision} for {plan.ep}", cache)
        if plan.quantizer in CALIBRATED:
            buildable, key = calibrate_checkpoint(
                source.checkpoint, plan, calibration, cache, log=log, on_progress=advance
            )
            if buildable.quantization is not None:  # which the builder reads by other ways than a plain one
                shown = compare_logits(buildable, key, known, cache=cache, log=log)
                progress.message(f"rounded: {shown}")

        def make(asked: BuildPlan, where: Path) -> MadeGraph:
            report, kept = build_or_resume(
                buildable,
                key,
                asked,
                where,
                cache=cache,
                log=log,
                on_progress=progress.advance,
                text=calibration,
                vision=source.vision,
            )
            progress.stage(4, STAGES, "reading the graph back")
            config, graph = read_back(where)
            rope = None if known is None else known.rope
            more = [] if rope is None else compare_rope(rope, config, where)
            more += compare_workarounds(shown, report.workarounds)
            check_conformance(asked, report.config, config, graph, [*more, *compare_ends(report.ends, config)])
            assessed = _assess(asked, spec, source, graph, staged=where, cache=cache, log=log, progress=progress)
            return MadeGraph(asked, report, kept, config, graph, assessed)

        made, choice = make_with_measured_cache(plan, make, staged, progress)
        plan, report, config, graph, assessed = made.plan, made.report, made.config, made.graph, made.assessed
        checked, quality = assessed.checked, {**quality_of(assessed.checked, graph, spec.text.name), **assessed.summary}
        quality |= {"logits": shown.describe(), "stops": describe_stops(report.ends, checked)}
        quality |= {} if choice is None else {"kv_choice": msgspec.to_builtins(choice)}
        if report.vision is not None:
            progress.message(str(report.vision))
            quality |= {"vision": describe_vision(report.vision, staged)}
        progress.stage(7, STAGES, "writing the bundle")
        _write_extras(staged, source, plan, {**quality, **assessed.details}, graph, workarounds=report.workarounds)
        checkpoint, vision = source.checkpoint, source.vision
        manifest = compose_manifest(
            name=plan.name,
            version=plan.version,
            epoch=plan.epoch,
            arch=plan.arch,
            ep=plan.ep,
            quantizer=quantizer,
            family=checkpoint.family if vision is None else family_of(vision.architecture),
            architecture=checkpoint.architecture if vision is None else vision.architecture,
            parameters=checkpoint.parameters + (0 if vision is None else vision.parameters),
            spdx=plan.license or checkpoint.license_spdx,
            config=config,
            graph=graph,
            checked=checked,
            quality=quality,
            staged=staged,
            provenance=short_provenance(source.describe()),
            behaviour=complete_behaviour(plan.behaviour, checkpoint.path),
        )
        built = finish_bundle(staged, out, manifest)
        with contextlib.suppress(OSError):  # the bundle is there, whatever becomes of the cache
            for kept in made.kept:
                drop_graph(kept)
            bound_cache(cache, time.time())
        return built


class DryRun(Struct, frozen=True):
    """What a build would do; ``behaviour`` is what it would sign."""

    source: dict[str, Any]
    architecture: str
    parameters: int
    precision: str
    quantizer: str
    license: str
    chat_template: bool
    behaviour: Behaviour | None
    estimate: Estimate


def dry_run(plan: BuildPlan, out: Path, progress: BuildProgress | None = None, *, cache: Path | None = None) -> DryRun:
    """Do what :func:`build_bundle` does before it builds: check the options, open the source, estimate. Makes nothing.

    Raises:
        UsageError, BuildRefused, StoreFull, StoreBroken: what would be refused before the graph is built.
    """
    _read_inputs(plan)
    progress, cache = progress or SilentProgress(), cache or default_cache()
    log = cache / "logs" / f"{plan.name}-{plan.version}.log"
    with disk_errors("reading the source"), using(), staging(out):
        source, plan, quantizer, estimate = _open(plan, out, cache, log, progress)
    checkpoint = source.checkpoint
    return DryRun(
        source=source.describe(),
        architecture=checkpoint.architecture if source.vision is None else source.vision.architecture,
        parameters=checkpoint.parameters + (0 if source.vision is None else source.vision.parameters),
        precision=plan.precision,
        quantizer=quantizer,
        license=plan.license or checkpoint.license_spdx,
        chat_template=checkpoint.chat_template is not None,
        behaviour=complete_behaviour(plan.behaviour, checkpoint.path),
        estimate=estimate,
    )


def _read_inputs(plan: BuildPlan) -> tuple[EvaluationSpec, EvalText | None]:
    """Check the options, and read the files that they name."""
    check_plan(plan)
    require_library(plan.quantizer)
    return prepare_evaluation(plan.quality, plan.precision), read_calibration(plan.calibration)


def _open(
    plan: BuildPlan, out: Path, cache: Path, log: Path, progress: BuildProgress
) -> tuple[OpenedSource, BuildPlan, str, Estimate]:
    """The source, the plan with its quantizer settled, the one to put on record, and what the build will take; refuses
    what cannot become a bundle.
    """
    progress.stage(1, STAGES, "reading the source", cache)
    known: list[tuple[BuildPlan, str, Estimate]] = []

    def look(checkpoint: Checkpoint) -> None:
        complete_behaviour(plan.behaviour, checkpoint.path)  # refuses settings that no request could have
        seeing = msgspec.structs.replace(plan, sees=checkpoint.sees)
        settled = settle_kv(settle_quantizer(seeing, checkpoint), checkpoint, read_shape(checkpoint))
        quantizer = check_source(settled, checkpoint)
        known.append((settled, quantizer, _announce(settled, checkpoint, out.parent, cache, progress)))

    source = open_source(plan.source, cache, log, progress.advance, plan.origin, on_headers=look)
    if plan.source_sha256 is not None and source.sha256 != plan.source_sha256:
        raise BuildRefused(
            f"{source.label} is not the source of that build: its SHA-256 is {source.sha256[:12]}…, "
            f"the source's was {plan.source_sha256[:12]}…"
        )
    return source, *known[-1]


def _announce(plan: BuildPlan, checkpoint: Checkpoint, out: Path, cache: Path, progress: BuildProgress) -> Estimate:
    """Say what is coming, and refuse what this host cannot finish."""
    needed = estimate_build(plan, read_shape(checkpoint), linked=can_link(out, cache))
    estimate = needed.seeing(checkpoint.vision_parameters).after(checkpoint.pending)
    memory = available_memory()
    refuse_what_cannot_fit(estimate, out, cache, memory, pending=checkpoint.pending)
    estimate = estimate.within(memory)
    progress.message(str(estimate))
    if checkpoint.rowless:
        named = ", ".join(checkpoint.rowless[:4]) + (" …" if len(checkpoint.rowless) > 4 else "")
        progress.message(f"the model has no rows for the tokens {named}: the bundle's tokenizer does without them")
    if checkpoint.chat_template is None:
        progress.message("there is no chat template: a base model, whose prompts go in as they are")
    return estimate


def _assess(
    plan: BuildPlan,
    spec: EvaluationSpec,
    source: OpenedSource,
    graph: GraphFacts,
    *,
    staged: Path,
    cache: Path,
    log: Path,
    progress: BuildProgress,
) -> Assessment:
    if plan.ep != "cpu":
        progress.stage(6, STAGES, f"{NOT_RUN}: {plan.ep}")
        return Assessment(not_executed_result(graph), {"check": NOT_RUN}, {})
    progress.stage(5, STAGES, "asking the source")
    heard = source_logits(spec, source.checkpoint, cache, log, progress)
    looked = None
    if source.vision is not None and heard is not None:
        progress.stage(5, STAGES, "asking about pictures")
        seeing = SeeingSource(source.vision, source.checkpoint, source.digest)
        looked = ask_about_pictures(seeing, staged, cache=cache, log=log, on_progress=progress.advance)
    progress.stage(6, STAGES, "loading, generating and comparing")
    known = source.reference
    return evaluate(
        spec,
        heard,
        staged,
        log,
        progress,
        spellings=() if known is None else known.spellings,
        renderings=() if known is None else known.templates.renderings,
        looked=looked,
    )


def _write_extras(
    staged: Path,
    source: OpenedSource,
    plan: BuildPlan,
    quality: dict[str, Any],
    graph: GraphFacts,
    *,
    workarounds: list[str],
) -> None:
    if source.checkpoint.license_file is not None:
        shutil.copyfile(source.checkpoint.license_file, staged / "LICENSE")
    card = source.checkpoint.path / CARD_FILE
    (staged / EVIDENCE_DIR).mkdir(exist_ok=True)
    if card.is_file():
        shutil.copyfile(card, staged / EVIDENCE_DIR / CARD_FILE)
    provenance = {
        **short_provenance(source.describe()),
        "options": {
            "precision": plan.precision,
            "ep": plan.ep,
            "quantizer": plan.quantizer,
            "builder": builder_options(plan),
            **(
                {"calibration": describe_calibration(plan, source.checkpoint.parameters)}
                if plan.quantizer in CALIBRATED
                else {}
            ),
            **({"kv": describe_scales(read_calibration(plan.calibration))} if plan.kv == "int8" else {}),
        },
        **record_build(plan, source.describe()),
        "workarounds": workarounds,
        "host": describe_host(),
    }
    write_evidence(staged, quality, provenance, graph)
    write_report(staged, f"{plan.name}@{plan.version}", quality, provenance, graph)
