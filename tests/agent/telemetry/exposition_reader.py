"""Strict readers of a metrics page: one of our own for the rules of the format, and the official client's two."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)')

Family = tuple[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]


def parse(text: str) -> dict[str, Family]:
    """A strict reader of the format: HELP and TYPE once and first, families together, no sample twice."""
    families: dict[str, Family] = {}
    current = ""
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in families
            assert re.fullmatch(NAME, current)
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            assert kind in ("counter", "gauge", "histogram")
            families[name] = (kind, {})
            continue
        found = SAMPLE.fullmatch(line)
        assert found is not None, line
        name, inner, value = found.groups()
        kind, samples = families[current]
        endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        assert name in {current + ending for ending in endings}
        assert kind != "counter" or name.endswith("_total")
        labels = []
        while inner:
            label = LABEL.match(inner)
            assert label is not None, inner
            labels.append((label[1], label[2]))
            inner = inner[label.end() :]
        key = (name, tuple(sorted(labels)))
        assert key not in samples
        samples[key] = float(value)
    return families


Sample = tuple[str, tuple[tuple[str, str], ...], float]


def official(text: str, *, open_metrics: bool = False) -> tuple[dict[str, Metric], set[Sample]]:
    """What the official client reads: families by name, and all samples."""
    families = list((parse_open_metrics if open_metrics else parse_text)(text))
    found = {family.name: family for family in families}
    assert len(found) == len(families)
    return found, set(_samples(families))


def _samples(families: Iterable[Metric]) -> Iterable[Sample]:
    for family in families:
        for sample in family.samples:
            yield sample.name, tuple(sorted(sample.labels.items())), sample.value


def check_histogram(name: str, family: Family) -> None:
    _, samples = family
    buckets = [
        (float(dict(labels)["le"]), value) for (key, labels), value in samples.items() if key == f"{name}_bucket"
    ]
    assert buckets == sorted(buckets)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1][0] == math.inf
    (count,) = [value for (key, _), value in samples.items() if key == f"{name}_count"]
    assert buckets[-1][1] == count
