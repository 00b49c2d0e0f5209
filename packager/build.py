"""The whole build, as a list: source, graph, proof, check, evidence, bundle."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

from contract.durable import translate
from contract.errors import BuildRefused
from contract.genai_config import GenaiFacts
from contract.manifest import Budget, Canary, License, Manifest, Model, Requires
from packager.builder import build_graph
from packager.bundle import BuiltBundle, finish_bundle, list_files, staging
from packager.check import CheckResult, check_model
from packager.evidence import (
    BUILD_TOOLS,
    EVIDENCE_DIR,
    describe_host,
    host_line,
    quality_of,
    tool_versions,
    write_evidence,
)
from packager.plan import BuildPlan, builder_options, check_plan
from packager.progress import BuildProgress, SilentProgress
from packager.quality import reference_text
from packager.readback import GraphFacts, prove, read_back
from packager.sources.checkpoint import read_chat_template
from packager.sources.opening import OpenedSource, open_source

STAGES = 5
MIB = 2**20

RAM_RESERVE_BYTES = 64 * MIB
"""What the agent and the system's own growth need beside a worker that peaks as measured."""

DISK_FACTOR = 2
"""A new version lies beside the old one until it has proved itself."""

AGENT_BOUND = ">=0.1.0"


def default_cache() -> Path:
    """Where converted checkpoints and logs are kept: ``EDGE_CACHE``, else the user's cache directory."""
    named = os.environ.get("EDGE_CACHE")
    if named:
        return Path(named).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-bundle"


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Errors of the operating system as ours: a full disk is no fault of the source."""
    try:
        yield
    except OSError as error:
        raise translate(error, doing) from error


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
    check_plan(plan)
    progress, cache = progress or SilentProgress(), cache or default_cache()
    log = cache / "logs" / f"{plan.name}-{plan.version}.log"
    with disk_errors("building"), staging(out) as staged:
        log.unlink(missing_ok=True)
        progress.stage(1, STAGES, "reading the source")
        source = open_source(plan.source, cache, log, progress.advance)
        progress.stage(2, STAGES, f"building {plan.precision} for {plan.ep}")
        report = build_graph(source.checkpoint, plan, staged, log, progress.advance)
        progress.stage(3, STAGES, "reading the graph back")
        config, graph = read_back(staged)
        prove(plan, report.config, config, graph)
        progress.stage(4, STAGES, "loading and generating")
        checked = _check(plan, staged, log, progress)
        progress.stage(5, STAGES, "writing the bundle")
        _write_extras(staged, source, plan, checked, graph, report.workarounds)
        checkpoint = source.checkpoint
        manifest = compose_manifest(
            name=plan.name,
            version=plan.version,
            epoch=plan.epoch,
            arch=plan.arch,
            ep=plan.ep,
            quantizer=plan.quantizer if plan.quantised else "none",
            family=checkpoint.family,
            architecture=checkpoint.architecture,
            parameters=checkpoint.parameters,
            spdx=plan.license or checkpoint.license_spdx,
            config=config,
            graph=graph,
            checked=checked,
            staged=staged,
            provenance=short_provenance(source.kind, source.label, source.sha256),
        )
        return finish_bundle(staged, out, manifest)


def _check(plan: BuildPlan, staged: Path, log: Path, progress: BuildProgress) -> CheckResult:
    if plan.ep != "cpu":
        raise BuildRefused(f"a bundle for {plan.ep} cannot be checked on this host; only cpu bundles are made here")
    return check_model(staged, log, text=reference_text(), on_progress=progress.advance)


def _write_extras(
    staged: Path,
    source: OpenedSource,
    plan: BuildPlan,
    checked: CheckResult,
    graph: GraphFacts,
    workarounds: list[str],
) -> None:
    if source.checkpoint.license_file is not None:
        shutil.copyfile(source.checkpoint.license_file, staged / "LICENSE")
    provenance = {
        **short_provenance(source.kind, source.label, source.sha256),
        "options": {"precision": plan.precision, "ep": plan.ep, "builder": builder_options(plan)},
        "workarounds": workarounds,
        "host": describe_host(),
    }
    write_evidence(staged, quality_of(checked, graph), provenance, graph)


def short_provenance(kind: str, label: str, sha256: str) -> dict[str, Any]:
    """What the manifest itself says of its origin; the whole lies in ``evidence/provenance.json``."""
    return {
        "source": {"kind": kind, "name": label, "sha256": sha256},
        "tools": tool_versions(BUILD_TOOLS),
        "evidence": f"{EVIDENCE_DIR}/provenance.json",
    }


def compose_manifest(
    *,
    name: str,
    version: str,
    epoch: int,
    arch: tuple[Literal["x86_64", "aarch64"], ...],
    ep: str,
    quantizer: str,
    family: str,
    architecture: str,
    parameters: int,
    spdx: str,
    config: GenaiFacts,
    graph: GraphFacts,
    checked: CheckResult,
    staged: Path,
    provenance: dict[str, Any],
) -> Manifest:
    """The manifest of the finished folder ``staged``: measured and read back, not copied from what was asked for."""
    files = list_files(staged)
    total = sum(entry.size for entry in files)
    versions = tool_versions(("onnxruntime", "onnxruntime-genai"))
    template = read_chat_template(staged)
    products = graph.quantised
    return Manifest(
        schema="edge-bundle/1",
        name=name,
        version=version,
        security_epoch=epoch,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        files=files,
        model=Model(
            family=family,
            architecture=architecture,
            parameters=parameters,
            precision=cast(Any, graph.precision),
            block_size=max((product.block_size for product in products), default=0),
            accuracy_level=min((product.accuracy_level for product in products), default=0),
            quantizer=quantizer,
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            chat_template_sha256=None if template is None else hashlib.sha256(template).hexdigest(),
            ep=cast(Any, ep),
            capabilities=[*config.capabilities, *(["chat"] if template else [])],
        ),
        requires=Requires(
            arch=list(arch),
            isa_any=[],
            min_ram_bytes=-(-(checked.peak_rss_bytes + RAM_RESERVE_BYTES) // MIB) * MIB,
            min_disk_bytes=DISK_FACTOR * total,
            onnxruntime=f">={versions['onnxruntime']}",
            onnxruntime_genai=f">={versions['onnxruntime-genai']}",
            agent=AGENT_BOUND,
        ),
        budget=Budget(
            peak_rss_bytes=checked.peak_rss_bytes,
            load_seconds=checked.load_seconds,
            tokens_per_second=checked.tokens_per_second,
            host=host_line(),
            threads=checked.threads,
        ),
        canary=[
            Canary(
                prompt=canary.prompt,
                expected_text=canary.text,
                mean_nll=round(canary.mean_nll, 6),
                tolerance=canary.tolerance,
            )
            for canary in checked.canaries
        ],
        quality=quality_of(checked, graph),
        license=License(spdx=spdx, file="LICENSE" if (staged / "LICENSE").is_file() else None),
        provenance=provenance,
    )
