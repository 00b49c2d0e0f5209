"""A finished onnxruntime-genai folder, made by somebody else, into a bundle: the same proof, nothing assumed."""

from __future__ import annotations

import shutil
from pathlib import Path

from contract.bundle.genai_config import GenaiFacts
from contract.bundle.manifest import MANIFEST_FILE
from contract.errors import BuildRefused, UsageError
from packager.build.behaviour import complete_behaviour
from packager.build.bundle import BuiltBundle, finish_bundle, staging
from packager.build.describe import compose_manifest, short_provenance
from packager.build.pipeline import default_cache, disk_errors
from packager.build.plan import BuildPlan, check_plan
from packager.build.progress import BuildProgress, SilentProgress
from packager.evaluate.check import check_model
from packager.evaluate.evidence import describe_host, quality_of, write_evidence
from packager.evaluate.jobs import CheckResult
from packager.evaluate.text import reference_text
from packager.graph.facts import GraphFacts, read_back
from packager.graph.not_executed import NOT_RUN, not_executed_result
from packager.report import write_report
from packager.sources.checkpoint import TEMPLATE_FILE, TOKENIZER_FILES, digest_directory

STAGES = 4
PARTS = {"vision": "pictures", "speech": "sound"}
"""What a model with these capabilities reads beside text."""


def pack_bundle(
    plan: BuildPlan, out: Path, progress: BuildProgress | None = None, *, cache: Path | None = None
) -> BuiltBundle:
    """Pack the folder ``plan.source`` into the directory ``out``; only names, epoch and licence count.

    Raises:
        UsageError: ``out`` is there already, or the folder is a bundle itself.
        BuildRefused: configuration or tokenizer are missing, or the model does not load or generate.
        BundleRefused: configuration or graph are not allowed in a bundle.
        StoreFull, StoreBroken: the disk.
    """
    check_plan(plan)
    progress, cache = progress or SilentProgress(), cache or default_cache()
    model_dir = Path(plan.source)
    if not model_dir.is_dir():
        raise BuildRefused(f"{plan.source!r} is not a directory; name a finished onnxruntime-genai folder")
    if (model_dir / MANIFEST_FILE).exists():
        raise UsageError(f"{model_dir} is a bundle already; publish it as it is", field="model_dir")
    if not any((model_dir / name).is_file() for name in TOKENIZER_FILES):
        raise BuildRefused(f"{model_dir} has no tokenizer; put tokenizer.json beside genai_config.json")
    log = cache / "logs" / f"{plan.name}-{plan.version}.log"
    with disk_errors("packing"), staging(out) as staged:
        log.unlink(missing_ok=True)
        progress.stage(1, STAGES, "copying and reading the graph")
        config, graph = read_back(model_dir)
        copy_folder(model_dir, staged)
        if plan.origin.chat_template is not None:
            (staged / TEMPLATE_FILE).write_text(plan.origin.chat_template, "utf-8")
        runs = config.provider == "cpu"
        progress.stage(2, STAGES, "loading and generating" if runs else f"{NOT_RUN}: {config.provider}")
        checked = _check(staged, config, graph, log, progress)
        progress.stage(3, STAGES, "writing the evidence")
        provenance = short_provenance(
            {"kind": "folder", "name": model_dir.resolve().name, "sha256": digest_directory(model_dir)}
        )
        quality = {**quality_of(checked, graph, reference_text().name), **note_on_check(config, checked)}
        write_evidence(staged, quality, {**provenance, "host": describe_host()}, graph)
        write_report(staged, f"{plan.name}@{plan.version}", quality, provenance, graph)
        progress.stage(4, STAGES, "writing the bundle")
        manifest = compose_manifest(
            name=plan.name,
            version=plan.version,
            epoch=plan.epoch,
            arch=plan.arch,
            ep=config.provider,
            quantizer="unknown" if graph.quantised else "none",
            family=config.model_type,
            architecture=config.model_type,
            parameters=graph.parameters,
            spdx=plan.license or "unknown",
            config=config,
            graph=graph,
            checked=checked,
            quality=quality,
            staged=staged,
            provenance=provenance,
            behaviour=complete_behaviour(plan.behaviour, staged),
        )
        return finish_bundle(staged, out, manifest)


def _check(staged: Path, config: GenaiFacts, graph: GraphFacts, log: Path, progress: BuildProgress) -> CheckResult:
    if config.provider != "cpu":
        return not_executed_result(graph)
    if "text" not in config.capabilities:
        return check_model(staged, log, questions=(), on_progress=progress.advance)
    return check_model(staged, log, text=reference_text().text, on_progress=progress.advance)


def note_on_check(config: GenaiFacts, checked: CheckResult) -> dict[str, str]:
    """What evidence says where not all of a model was run: a picture is shown where devices can, sound never played."""
    parts = [PARTS[part] for part in config.capabilities if part in PARTS]
    if config.provider != "cpu":
        return {"check": NOT_RUN}
    if "text" not in config.capabilities:
        return {"check": f"every graph was loaded; none was run, since the model reads {' and '.join(parts)}"}
    if checked.seen is not None:
        return {"check": "run with text, and with a picture"}
    if parts:
        return {"check": f"run with text; the graphs for {' and '.join(parts)} were loaded and not run"}
    return {}


def copy_folder(source: Path, target: Path) -> None:
    """Copy every visible file of ``source``; what links point to is copied, never the link.

    Raises:
        BuildRefused: something in it is neither file nor directory.
    """
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if path.is_dir():
            (target / relative).mkdir(parents=True, exist_ok=True)
        elif path.is_file():
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)
        else:
            raise BuildRefused(f"{path} is neither a file nor a directory; remove it")
