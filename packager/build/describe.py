"""What a bundle says of itself: the manifest, from what was measured and read back."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Any, Literal, cast

from contract.bundle.adapter_slots import CAPABILITY
from contract.bundle.device_plan import least_ram
from contract.bundle.footprint import measure_footprint
from contract.bundle.genai_config import GenaiFacts
from contract.bundle.manifest import Behaviour, Budget, Canary, License, Manifest, Model, PictureCanary, Requires
from contract.onnx.wire import read_graph_file
from packager.build.bundle import list_files
from packager.evaluate.check import tolerance
from packager.evaluate.evidence import BUILD_TOOLS, EVIDENCE_DIR, host_line, tool_versions
from packager.evaluate.jobs import CheckResult
from packager.graph.facts import GraphFacts
from packager.graph.not_executed import NOT_RUN
from packager.sources.checkpoint import read_chat_template

DISK_FACTOR = 2
"""A new version lies beside the old one until it has proved itself."""

AGENT_BOUND = ">=0.1.0"


def short_provenance(source: dict[str, Any]) -> dict[str, Any]:
    """What the manifest itself says of its origin; the whole lies in ``evidence/provenance.json``."""
    return {
        "source": source,
        "tools": tool_versions(BUILD_TOOLS),
        "evidence": f"{EVIDENCE_DIR}/provenance.json",
    }


def measured_canaries(checked: CheckResult) -> list[Canary]:
    """What devices hold the bundle against: the texts that it gave here, and how likely it found them."""
    return [
        Canary(
            prompt=canary.prompt,
            expected_text=canary.text,
            mean_nll=round(canary.mean_nll, 6),
            tolerance=tolerance(canary),
            stops=canary.stops,
        )
        for canary in checked.canaries
    ]


def picture_canary(checked: CheckResult) -> PictureCanary | None:
    """The same about a picture, of a model that sees."""
    seen = checked.seen
    if seen is None or seen.picture is None:
        return None
    return PictureCanary(seen.prompt, seen.picture, seen.text, round(seen.mean_nll, 6), tolerance(seen))


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
    quality: dict[str, Any],
    staged: Path,
    provenance: dict[str, Any],
    behaviour: Behaviour | None = None,
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
            capabilities=[
                *config.capabilities,
                *(["chat"] if template else []),
                *([CAPABILITY] if graph.slots else []),
            ],
        ),
        requires=Requires(
            arch=list(arch),
            isa_any=[],
            min_ram_bytes=least_ram(measure_footprint(config, lambda name: read_graph_file(staged / name))),
            min_disk_bytes=DISK_FACTOR * total,
            onnxruntime=f">={versions['onnxruntime']}",
            onnxruntime_genai=f">={versions['onnxruntime-genai']}",
            agent=AGENT_BOUND,
        ),
        budget=Budget(
            peak_rss_bytes=checked.peak_rss_bytes,
            load_seconds=checked.load_seconds,
            tokens_per_second=checked.tokens_per_second,
            host=host_line() if ep == "cpu" else NOT_RUN,
            threads=checked.threads,
        ),
        canary=measured_canaries(checked),
        picture_canary=picture_canary(checked),
        quality=quality,
        license=License(spdx=spdx, file="LICENSE" if (staged / "LICENSE").is_file() else None),
        provenance=provenance,
        behaviour=behaviour,
    )
