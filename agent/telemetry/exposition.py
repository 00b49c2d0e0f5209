"""How Prometheus reads metrics: families of samples as text, in the two formats that scrapers ask for. Pure.

The text exposition format 0.0.4 for whoever names none, OpenMetrics 1.0 for whoever prefers it in ``Accept``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import UNSET, Struct

from agent.telemetry.samples import HistogramSample

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = Mapping[str, str]
Kind = Literal["gauge", "counter", "histogram", "info"]


class Family(Struct, frozen=True):
    """A metric as it is called and what it says. A counter's name ends in ``_total``, an info metric's in ``_info``.

    ``labels``: besides ``device``, which every sample has; each takes its values from a bounded set.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


class Exposition:
    """Families in order, each with its samples together, as both formats demand; ``labels`` stand at every sample."""

    def __init__(self, labels: Labels, content_type: str = TEXT) -> None:
        self._labels = labels
        self._open = content_type == OPEN_METRICS
        self._lines: list[str] = []

    def add(self, family: Family, samples: Iterable[tuple[Labels, object]]) -> None:
        """A family; samples whose value is UNSET are left out, and a family without samples, too."""
        found = [(labels, value) for labels, value in samples if value is not UNSET]
        if found:
            self._head(family)
            for labels, value in found:
                self._line(family.name, labels, value)

    def set(self, family: Family, value: object, **labels: str) -> None:
        """A family with one sample; nothing where ``value`` is UNSET."""
        self.add(family, [(labels, value)])

    def states(self, family: Family, known: Iterable[str], active: Iterable[str]) -> None:
        """1 for every state of the one label that is ``active``, 0 for all others that are ``known``: an alert needs a
        series before something happens, not only while it does.
        """
        (label,) = family.labels
        found = set(active)
        self.add(family, [({label: state}, int(state in found)) for state in sorted({*known, *found})])

    def histogram(self, family: Family, sample: HistogramSample) -> None:
        self._head(family)
        for bound, count in zip([*sample.bounds, "+Inf"], sample.cumulative, strict=True):
            self._line(f"{family.name}_bucket", {"le": str(bound)}, count)
        self._line(f"{family.name}_sum", {}, sample.sum)
        self._line(f"{family.name}_count", {}, sample.count)

    def text(self) -> str:
        """The whole page."""
        return "\n".join([*self._lines, *(["# EOF"] if self._open else [])]) + "\n"

    def _head(self, family: Family) -> None:
        name, kind = family.name, family.kind
        if self._open:
            name = name.removesuffix({"counter": "_total", "info": "_info"}.get(kind, ""))
        elif kind == "info":
            # 0.0.4 has no such type.
            kind = "gauge"
        self._lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {kind}"]

    def _line(self, name: str, labels: Labels, value: object) -> None:
        inner = ",".join(f'{key}="{_escape(text)}"' for key, text in {**self._labels, **labels}.items())
        self._lines.append(f"{name}{{{inner}}} {value!r}")


def preferred(accept: str) -> str:
    """The content type for a scraper that sends this ``Accept`` header."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        media, *rest = (each.strip() for each in part.split(";"))
        parameters = {name.strip(): value.strip() for name, _, value in (each.partition("=") for each in rest)}
        if media == "application/openmetrics-text" and parameters.get("version", "1.0.0") != "1.0.0":
            continue
        weight = parameters.get("q", "1")
        found = float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 0.0
        weights[media] = max(weights.get(media, 0.0), found)
    plain = max(weights.get(media, 0.0) for media in ("text/plain", "text/*", "*/*"))
    wanted = weights.get("application/openmetrics-text", 0.0)
    return OPEN_METRICS if wanted > 0 and wanted >= plain else TEXT


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
