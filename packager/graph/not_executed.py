"""Bundles for execution providers that this host lacks: built and read back, never run, and saying so."""

from __future__ import annotations

from packager.evaluate.jobs import CheckResult
from packager.graph.facts import GraphFacts

NOT_RUN = "not run on this host"
"""Stands in the manifest's ``budget.host`` and ``quality.check`` where measurements would."""


def not_executed_result(graph: GraphFacts) -> CheckResult:
    """What is known without running: no canaries, no times, and at least the weights' bytes of memory."""
    return CheckResult(
        canaries=[], load_seconds=0.0, tokens_per_second=0.0, peak_rss_bytes=graph.tensor_bytes, threads=1
    )
