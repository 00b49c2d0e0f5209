"""Plots as SVG text: drawn here, so that the page needs nothing else and two builds draw the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 880
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 46
COLOURS = ("#2a6f97", "#61a5c2", "#bfd7ea", "#e07a5f")
WIDE_ENOUGH = 72
"""Width of a bar whose name fits under it without being turned."""

INK, GRID = "#333", "#ddd"


def _svg(height: int, title: str, body: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="inherit" font-size="12" fill="{INK}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _step(top: float, wanted: int = 5) -> float:
    """A round distance between grid lines: 1, 2 or 5 times a power of ten."""
    raw = top / wanted
    power = float(10 ** math.floor(math.log10(raw)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw)


def _legend(names: Sequence[str], colours: Sequence[str]) -> list[str]:
    body, x = [], float(LEFT)
    for name, colour in zip(names, colours, strict=True):
        body.append(f'<rect x="{_number(x)}" y="4" width="12" height="12" fill="{colour}"/>')
        body.append(_text(x + 17, 14, name, "start"))
        x += 34 + 7 * len(name)
    return body


def stacked_bars(title: str, labels: Sequence[str], kinds: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """One bar for each label, its ``values`` stacked in the order of ``kinds``; the axis is in megabytes."""
    height = 300
    top = max(sum(row) for row in values) or 1.0
    step = _step(top)
    plot = height - TOP - BOTTOM
    body = _legend(kinds, COLOURS[: len(kinds)])
    for line in range(int(top / step) + 1):
        y = height - BOTTOM - plot * line * step / top
        body.append(f'<path d="M{LEFT} {_number(y)}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        body.append(_text(LEFT - 6, y + 4, f"{line * step:g} MB", "end"))
    pitch = (WIDTH - LEFT - RIGHT) / len(labels)
    every = max(1, math.ceil(sum(label.isdigit() for label in labels) * 20 / (WIDTH - LEFT - RIGHT)))
    for number, (label, row) in enumerate(zip(labels, values, strict=True)):
        x, y = LEFT + pitch * number, float(height - BOTTOM)
        for kind, value, colour in zip(kinds, row, COLOURS, strict=False):
            tall = plot * value / top
            y -= tall
            if value:
                body.append(
                    f'<rect x="{_number(x + pitch * 0.1)}" y="{_number(y)}" width="{_number(pitch * 0.8)}" '
                    f'height="{tall:.2f}" fill="{colour}"><title>{escape(label)}, {kind}: {value:.3f} MB</title></rect>'
                )
        if not label.isdigit() and pitch > WIDE_ENOUGH:
            body.append(_text(x + pitch / 2, height - BOTTOM + 15, label))
        elif not label.isdigit():
            turned = f' transform="rotate(-40 {_number(x + pitch / 2)} {height - BOTTOM + 14})"'
            body.append(_text(x + pitch / 2, height - BOTTOM + 14, label, "end", turned))
        elif int(label) % every == 0:
            body.append(_text(x + pitch / 2, height - BOTTOM + 15, label))
    body.append(_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, height - 8, "layer"))
    return _svg(height, title, body)


def scatter_over_positions(title: str, values: Sequence[float], mean: float, window: int) -> str:
    """``values`` in the order of the text as dots on a logarithmic axis, their mean, and where sequences begin."""
    height, low = 320, 1e-4
    high = 10.0 ** math.ceil(math.log10(max(*values, mean, low * 10)))
    decades = round(math.log10(high / low))
    plot = height - TOP - BOTTOM

    def at(value: float) -> float:
        return height - BOTTOM - plot * math.log10(max(value, low) / low) / decades

    body: list[str] = []
    for decade in range(decades + 1):
        y = at(low * 10**decade)
        body.append(f'<path d="M{LEFT} {_number(y)}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        name = f"{low * 10**decade:g}"
        body.append(_text(LEFT - 6, y + 4, name if decade else f"≤ {name}", "end"))
    wide = (WIDTH - LEFT - RIGHT) / len(values)
    for start in range(window, len(values), window):
        x = LEFT + wide * start
        body.append(f'<path d="M{_number(x)} {TOP}V{height - BOTTOM}" stroke="{GRID}" stroke-dasharray="4 4"/>')
    dots = "".join(f"M{_number(LEFT + wide * (n + 0.5))} {_number(at(value))}h0" for n, value in enumerate(values))
    body.append(f'<path d="{dots}" stroke="{COLOURS[0]}" stroke-width="3.4" stroke-linecap="round" opacity=".45"/>')
    body.append(f'<path d="{_running(values, window, wide, at)}" fill="none" stroke="{COLOURS[3]}" stroke-width="2"/>')
    body.append(f'<path d="M{LEFT} {_number(at(mean))}H{WIDTH - RIGHT}" stroke="{INK}" stroke-dasharray="2 3"/>')
    for start in range(0, len(values) + 1, _tick(len(values))):
        body.append(_text(LEFT + wide * start, height - BOTTOM + 15, str(start)))
    body.append(_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, height - 8, "position in the text (tokens)"))
    names = ("one token", "mean of 32 tokens around it", f"mean of all: {mean:.4g} nats")
    body += _legend(names, (COLOURS[0], COLOURS[3], INK))
    return _svg(height, title, body)


def _tick(count: int) -> int:
    return max(1, int(_step(float(count), 8)))


def _running(values: Sequence[float], window: int, wide: float, at: object, reach: int = 16) -> str:
    """A line through the means of neighbours, broken where a new sequence begins."""
    assert callable(at)
    path = []
    for start in range(0, len(values), window):
        piece = values[start : start + window]
        for n in range(0, len(piece), 4):
            near = piece[max(0, n - reach) : n + reach]
            pen = "M" if n == 0 else "L"
            path.append(f"{pen}{_number(LEFT + wide * (start + n + 0.5))} {_number(at(sum(near) / len(near)))}")
    return "".join(path)
