"""Plots as SVG, drawn here for those without scripts; scripts put live ones in their place. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 600.0, 120.0
"""Units of the drawing."""

GAP_SECONDS = 300.0
"""Without a value the line is broken."""


class Plot(NamedTuple):
    """``lines``: each as points of an SVG polyline; ``top``: the value at the upper edge."""

    name: str
    title: str
    unit: str
    lines: list[str]
    top: float
    last: float | None


def draw(name: str, title: str, unit: str, points: Sequence[tuple[float, float | None]]) -> Plot:
    """A line over time, from zero on; broken where nothing is known."""
    known = [(at, value) for at, value in points if value is not None]
    if not known:
        return Plot(name, title, unit, [], 0.0, None)
    start, end = points[0][0], points[-1][0]
    top = max(value for _, value in known) * 1.1 or 1.0
    lines: list[list[str]] = []
    before: float | None = None
    for at, value in known:
        if before is None or at - before > GAP_SECONDS:
            lines.append([])
        x = WIDTH * (at - start) / (end - start) if end > start else WIDTH
        lines[-1].append(f"{x:.1f},{HEIGHT * (1 - value / top):.1f}")
        before = at
    return Plot(name, title, unit, [" ".join(line) for line in lines], top, known[-1][1])
