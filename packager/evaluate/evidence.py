"""What is known of a build: where it came from, what made it, what was measured. Nothing personal, nothing with a time.

Files written here are the same for the same inputs on the same kind of host, so two builds can be compared byte for
byte; times are in the manifest alone.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from packager.build.jobs import TurnEnd
from packager.evaluate.jobs import CheckResult
from packager.graph.facts import GraphFacts

EVIDENCE_DIR = "evidence"
BUILD_TOOLS = ("onnxruntime-genai", "onnxruntime", "transformers", "torch", "onnx", "onnx-ir", "gguf", "safetensors")


def tool_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of ``names``, and Python's."""
    found = {"python": platform.python_version(), "edge-bundle": importlib.metadata.version("edge-bundle")}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_host() -> dict[str, Any]:
    """Kind of machine: architecture, processor, cores. No names of hosts, users or paths."""
    return {"arch": platform.machine(), "cpu": _cpu_name(), "cores": os.cpu_count() or 1, "system": sys.platform}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()[:120]
    except OSError:
        pass
    return platform.processor()[:120] or "unknown"


def host_line() -> str:
    """The host in one short line, for the budget."""
    host = describe_host()
    return f"{host['arch']}, {host['cpu']}, {host['cores']} cores"[:256]


def quality_of(checked: CheckResult, graph: GraphFacts, text: str) -> dict[str, Any]:
    """What goes into ``quality`` of the manifest whether or not there is a source; ``text`` names what was read."""
    quality: dict[str, Any] = {"embedding": graph.embedding, "lm_head": graph.lm_head, "kv": graph.kv_type}
    if checked.perplexity is not None:
        quality["perplexity"] = {"value": checked.perplexity, "tokens": checked.perplexity_tokens, "text": text}
    return quality


def describe_stops(ends: Sequence[TurnEnd], checked: CheckResult) -> dict[str, Any]:
    """What ends an answer, what names each such token, and how often one did; ``forced``: each was put in the model's
    mouth and ended generation.
    """
    return {
        "tokens": [msgspec.to_builtins(end) for end in ends],
        "forced": checked.stopped_by,
        "canaries": sum(canary.stops for canary in checked.canaries),
    }


def write_evidence(model_dir: Path, quality: dict[str, Any], provenance: dict[str, Any], graph: GraphFacts) -> None:
    """Write ``evidence/`` into a model folder."""
    directory = model_dir / EVIDENCE_DIR
    directory.mkdir(exist_ok=True)
    documents: dict[str, Any] = {
        "quality.json": quality,
        "provenance.json": provenance,
        "graph.json": {
            "opsets": graph.opsets,
            "operators": graph.operators,
            "quantised": [msgspec.to_builtins(product) for product in graph.quantised],
            "plain": list(graph.plain_matmuls),
            "windows": list(graph.windows),
        },
    }
    for name, document in documents.items():
        (directory / name).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
