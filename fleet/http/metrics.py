"""``/metrics`` in Prometheus' text format. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


class Sample(Struct, frozen=True):
    """A metric with its values by labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    values: dict[tuple[str, Labels], float]
    """By suffix of the name (``_bucket``, ``_sum``, ``_count`` of a histogram, else none) and labels."""


def counter(name: str, help: str, counts: Counter[Labels]) -> Sample:
    """Counts by labels."""
    return Sample(name, "counter", help, {("", labels): float(count) for labels, count in sorted(counts.items())})


def gauge(name: str, help: str, value: float) -> Sample:
    """One value."""
    return Sample(name, "gauge", help, {("", ()): value})


class Histogram:
    """How long things took, in seconds."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._help = help
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self._sum += seconds
        at = next((number for number, bound in enumerate(self._bounds) if seconds <= bound), len(self._bounds))
        self._counts[at] += 1

    def sample(self) -> Sample:
        values: dict[tuple[str, Labels], float] = {}
        total = 0
        for bound, count in zip([*(f"{each:g}" for each in self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            values["_bucket", (("le", bound),)] = total
        values["_sum", ()] = self._sum
        values["_count", ()] = total
        return Sample(self._name, "histogram", self._help, values)


def page(samples: Sequence[Sample]) -> str:
    """The whole page."""
    lines = []
    for sample in samples:
        lines += [f"# HELP {sample.name} {sample.help}", f"# TYPE {sample.name} {sample.kind}"]
        for (suffix, labels), value in sample.values.items():
            inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            lines.append(
                f"{sample.name}{suffix}{{{inner}}} {value:.10g}" if inner else f"{sample.name}{suffix} {value:.10g}"
            )
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
