"""A bundle that is an adapter for another bundle: checked against it, measured with it, and worth nothing without it.

The base is a finished bundle whose graph has places for adapters; the source and the LoRA are what they were trained
from. What is compared is the base with the adapter beside it against the source with the adapter merged into it.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.bundle.adapter_file import check_adapter, read_adapter_file
from contract.bundle.adapter_slots import CAPABILITY, Slot, find_slots
from contract.bundle.device_plan import MIB
from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.bundle.manifest import Base, Budget, License, Manifest
from contract.bundle.verifier import VerifiedDirectory
from contract.errors import BuildRefused, UsageError
from contract.identifiers import check_bundle_name, check_version
from contract.onnx.wire import read_graph_file
from packager.build.build_cache import using
from packager.build.bundle import BuiltBundle, finish_bundle, list_files, staging
from packager.build.describe import AGENT_BOUND, DISK_FACTOR, measured_canaries
from packager.build.pipeline import default_cache, disk_errors
from packager.build.plan import BuildPlan
from packager.build.progress import BuildProgress, SilentProgress
from packager.evaluate.assessment import Assessment, evaluate, prepare_evaluation, source_logits
from packager.evaluate.evidence import (
    BUILD_TOOLS,
    EVIDENCE_DIR,
    describe_host,
    host_line,
    quality_of,
    tool_versions,
    write_evidence,
)
from packager.evaluate.jobs import CheckResult
from packager.evaluate.verify import read_bundle_manifest, verify_files
from packager.graph.cache import LABELS
from packager.graph.facts import read_back
from packager.graph.slots import Block, assign_slots
from packager.report import write_report
from packager.sources.adapter import WEIGHTS, Adapter, check_base, inspect_adapter, merge_adapter
from packager.sources.checkpoint import Checkpoint, find_shards
from packager.sources.headers import read_headers
from packager.sources.jobs import ADAPTER_EXPORT, AdapterExportJob, SlotFilling
from packager.sources.opening import OpenedSource, open_source
from packager.sources.weights import list_tensors
from packager.subprocess_job import run_child

STAGES = 5
ADAPTER_FILE = "adapter.onnx_adapter"


class BaseBundle(Struct, frozen=True):
    """A whole bundle on this host whose graph takes adapters."""

    bundle: VerifiedDirectory
    slots: dict[str, Slot]


def read_base(directory: Path, progress: BuildProgress) -> BaseBundle:
    """The bundle in ``directory``, every byte compared with its manifest.

    Raises:
        UsageError: there is no bundle.
        BundleRefused: it is damaged.
        BuildRefused: it takes no adapters.
    """
    found = read_bundle_manifest(directory)
    manifest = found.manifest
    if manifest.base is not None:
        raise BuildRefused(f"{manifest.reference} is an adapter itself; name the bundle of the model with --base")
    verified = verify_files(directory, found, progress)
    config = read_genai_config((directory / CONFIG_FILE).read_bytes())
    slots = find_slots(read_graph_file(directory / config.filename))
    if not slots:
        raise BuildRefused(
            f"{manifest.reference} has no places for adapters; build it with --adapter-slots, or merge this one with "
            "--merge-adapter"
        )
    return BaseBundle(verified, slots)


def build_adapter_bundle(
    plan: BuildPlan, base_dir: Path, out: Path, progress: BuildProgress | None = None, *, cache: Path | None = None
) -> BuiltBundle:
    """Make ``plan.origin.adapter`` a bundle for the bundle in ``base_dir``; ``plan.source`` is what both came from.

    Raises:
        UsageError: the plan or ``out`` make no sense.
        BuildRefused: the adapter belongs to another base, or does not do beside it what it does merged.
        BundleRefused: what was built could not be installed anywhere.
        StoreFull, StoreBroken: the disk.
    """
    check_bundle_name(plan.name)
    check_version(plan.version)
    if plan.origin.adapter is None:
        raise UsageError("--base is for an adapter bundle; name the adapter with --adapter DIR", field="base")
    _refuse_options_of_the_base(plan)
    progress, cache = progress or SilentProgress(), cache or default_cache()
    log = cache / "logs" / f"{plan.name}-{plan.version}.log"
    with disk_errors("building"), using(), staging(out) as staged:
        log.unlink(missing_ok=True)
        progress.stage(1, STAGES, "reading base and source")
        adapter = inspect_adapter(plan.origin.adapter.expanduser(), merged=False)
        base = read_base(base_dir, progress)
        of_base = base.bundle.manifest.model
        spec = prepare_evaluation(plan.quality, of_base.precision if of_base.precision != "mixed" else "int4")
        plain = msgspec.structs.replace(plan.origin, adapter=None)
        source = open_source(plan.source, cache, log, progress.advance, plain)
        check_base(adapter, source.checkpoint, read_headers(source.checkpoint.path), plan.source)
        _check_source(base, source, plan.source)
        progress.stage(2, STAGES, "writing the adapter")
        parameters = export_adapter(adapter, source.checkpoint, base, staged / ADAPTER_FILE, log)
        progress.stage(3, STAGES, "asking the source with the adapter merged")
        merged = merge_adapter(
            source.checkpoint, source.sha256, adapter, cache=cache, log=log, on_progress=progress.advance
        )
        heard = source_logits(spec, merged, cache, log, progress)
        progress.stage(4, STAGES, "loading the base with the adapter and comparing")
        assessed = evaluate(spec, heard, base.bundle.path, log, progress, adapter=staged / ADAPTER_FILE)
        progress.stage(5, STAGES, "writing the bundle")
        origin = _provenance(source, adapter, base)
        _write_evidence(staged, plan, base, assessed, text=spec.text.name, origin=origin)
        manifest = _compose(
            plan, base, assessed.checked, staged, parameters=parameters, quality=assessed.summary, provenance=origin
        )
        return finish_bundle(staged, out, manifest)


def _refuse_options_of_the_base(plan: BuildPlan) -> None:
    """What the graph is was decided when the base was built; asking for it again would be ignored."""
    default = BuildPlan(plan.source, plan.name, plan.version)
    for field in msgspec.structs.fields(BuildPlan):
        if field.name not in LABELS and getattr(plan, field.name) != getattr(default, field.name):
            option = field.name.replace("_", "-")
            raise UsageError(f"--{option} was decided with the base bundle; leave it out with --base", field=option)


def export_adapter(adapter: Adapter, checkpoint: Checkpoint, base: BaseBundle, out: Path, log: Path) -> int:
    """Write ``adapter`` for the slots of ``base`` and read it back as a device would; its number of parameters.

    Raises:
        BuildRefused: it changes what has no place in the base.
        BundleRefused: what was written does not fit.
    """
    widths = {
        tensor.name: tensor.shape[0]
        for shard in find_shards(checkpoint.path)
        for tensor in list_tensors(shard)
        if tensor.shape
    }
    blocks = assign_slots(adapter.pairs, widths, base.slots)
    job = AdapterExportJob(
        checkpoint=str(checkpoint.path),
        adapter_dir=str(adapter.path.resolve()),
        pairs=dict(adapter.pairs),
        adapter=str(adapter.path / WEIGHTS),
        scale=adapter.scale,
        out=str(out),
        slots=[_filling(base.slots[name], blocks[name]) for name in sorted(blocks)],
    )
    result = run_child(ADAPTER_EXPORT, job, log)
    check_adapter(read_adapter_file(out), base.slots)
    return result.parameters


def _filling(slot: Slot, blocks: list[Block]) -> SlotFilling:
    return SlotFilling(slot.first, slot.second, slot.width_in, slot.width_out, blocks)


def _check_source(base: BaseBundle, source: OpenedSource, named: str) -> None:
    made_from = base.bundle.manifest.provenance.get("source")
    digest = made_from.get("sha256") if isinstance(made_from, dict) else None
    if digest != source.sha256 or "adapter" in (made_from or {}):
        raise BuildRefused(
            f"{base.bundle.manifest.reference} was not built from {named}, which the adapter is for; name a bundle "
            "that was"
        )


def _provenance(source: OpenedSource, adapter: Adapter, base: BaseBundle) -> dict[str, Any]:
    return {
        "source": {**source.describe(), "adapter": {"name": adapter.path.resolve().name, "sha256": adapter.sha256}},
        "base": {"bundle": base.bundle.manifest.reference, "manifest_sha256": base.bundle.digest},
        "tools": tool_versions(BUILD_TOOLS),
        "evidence": f"{EVIDENCE_DIR}/provenance.json",
    }


def _write_evidence(
    staged: Path, plan: BuildPlan, base: BaseBundle, assessed: Assessment, *, text: str, origin: dict[str, Any]
) -> None:
    _, graph = read_back(base.bundle.path)
    provenance = {**origin, "options": {}, "workarounds": [], "host": describe_host()}
    quality = {**quality_of(assessed.checked, graph, text), **assessed.summary, **assessed.details}
    write_evidence(staged, quality, provenance, graph)
    write_report(staged, f"{plan.name}@{plan.version}", quality, provenance, graph, base=base.bundle.path)


def _compose(
    plan: BuildPlan,
    base: BaseBundle,
    checked: CheckResult,
    staged: Path,
    *,
    parameters: int,
    quality: dict[str, Any],
    provenance: dict[str, Any],
) -> Manifest:
    files = list_files(staged)
    theirs = base.bundle.manifest
    adapters = sum(entry.size for entry in files if entry.role == "adapter")
    capabilities = [name for name in theirs.model.capabilities if name != CAPABILITY]
    return Manifest(
        schema="edge-bundle/1",
        name=plan.name,
        version=plan.version,
        security_epoch=max(plan.epoch, theirs.security_epoch),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        files=files,
        model=msgspec.structs.replace(theirs.model, parameters=parameters, capabilities=capabilities),
        requires=msgspec.structs.replace(
            theirs.requires,
            min_ram_bytes=theirs.requires.min_ram_bytes + -(-adapters // MIB) * MIB,
            min_disk_bytes=DISK_FACTOR * sum(entry.size for entry in files),
            agent=AGENT_BOUND,
        ),
        budget=Budget(
            peak_rss_bytes=checked.peak_rss_bytes,
            load_seconds=checked.load_seconds,
            tokens_per_second=checked.tokens_per_second,
            host=host_line(),
            threads=checked.threads,
        ),
        canary=measured_canaries(checked),
        quality=quality,
        license=License(spdx=plan.license or "unknown"),
        provenance=provenance,
        base=Base(name=theirs.name, version=theirs.version, manifest_sha256=base.bundle.digest),
    )
