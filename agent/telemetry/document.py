"""Writes ``docs/TELEMETRY.md`` from the types of the samples and the families of metrics.

``python -m agent.telemetry.document [--write]``.
Without ``--write`` it checks that the file says what the types say.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from agent.host import throttling
from agent.telemetry.families import FAMILIES
from agent.telemetry.llm import SECONDS, TOKEN_SECONDS
from agent.telemetry.samples import LlmSample, SystemSample

FILE = Path(__file__).resolve().parents[2] / "docs" / "TELEMETRY.md"

HEAD = """# Telemetry

Written from the types by `python -m agent.telemetry.document --write`; changes belong there.

Every `interval_seconds` a device publishes one sample of each kind at QoS 0 on `edge/v1/d/{device}/telemetry/system`
and `…/telemetry/llm`. What is *optional* here is absent where the machine does not say it, never zero. Rates count
from the sample before; where a counter restarted there is no rate.
"""

HOME_ASSISTANT = """## Home Assistant

With `telemetry.home_assistant.enabled`, the device announces itself to Home Assistant (2024.11 or later) with one
retained document on `PREFIX/device/DEVICE/config` (MQTT device discovery); what is not a letter, digit, `_` or `-`
in the device's name is `_` there, with a digest behind. Its entities read the topics above and those of
`docs/MQTT.md`, and are unavailable while `status` reports that the device is offline:

| entity | | reads |
|---|---|---|
| Ready | binary sensor; reasons and warnings as attributes | `health` |
| Active bundle | `NAME@VERSION` or `none`; digest and security epoch as attributes | `reported` |
| Bundle | update: what is active against what is desired, with progress; it shows, it does not install | `reported` |
| Last error | reason code or `none`; the message as an attribute | `reported` |
| Agent version | | `info` |
| Requests waiting, active | | `health` |
| Tokens generated | since the agent's start | `telemetry/llm` |
| Processors, memory available, disk free, each temperature | where the machine says them | `telemetry/system` |

Switched off again, or under another name or prefix, what was announced is removed; so is a sensor that the machine
does not have any more.
"""

SETTINGS = """## Configuration

Intervals, throttling, Prometheus and Home Assistant: [CONFIGURATION.md](CONFIGURATION.md#telemetry).
"""


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, type_ in (("telemetry/system", SystemSample), ("telemetry/llm", LlmSample)):
        parts.append(f"## {title}\n")
        parts += [_section(found) for found in _structs(type_)]
    parts.append(_buckets())
    parts.append(_metrics())
    parts.append(HOME_ASSISTANT)
    parts.append(_throttling())
    parts.append(SETTINGS)
    return "\n".join(parts).rstrip() + "\n"


def _structs(type_: type[Struct]) -> Iterator[type[Struct]]:
    """``type_`` and what it holds, each once."""
    found = [type_]
    for each in found:
        for annotation in typing.get_type_hints(each).values():
            found += [inner for inner in _inner(annotation) if inner not in found]
    yield from found


def _inner(annotation: Any) -> Iterator[type[Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _inner(part)


def _section(type_: type[Struct]) -> str:
    doc = " ".join((type_.__doc__ or "").split())
    lines = [f"### {type_.__name__}", "", doc, "", "| field | type | |", "|---|---|---|"]
    hints = typing.get_type_hints(type_, include_extras=True)
    for field in msgspec.structs.fields(type_):
        optional = ", optional" if field.default is UNSET else ""
        lines.append(
            f"| `{field.encode_name}` | {_name(hints[field.name])}{optional} | {_described(hints[field.name])} |"
        )
    return "\n".join(lines) + "\n"


def _name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        return _name(typing.get_args(annotation)[0])
    parts = [part for part in typing.get_args(annotation) if part is not UnsetType]
    origin = typing.get_origin(annotation)
    if origin is list:
        return f"list of {_name(parts[0])}"
    if origin is dict:
        return f"object of {_name(parts[1])}"
    if parts:
        return _name(parts[0])
    return str(
        {float: "number", int: "integer", str: "text", bool: "true or false"}.get(annotation, annotation.__name__)
    )


def _described(annotation: Any) -> str:
    for part in typing.get_args(annotation):
        if isinstance(part, Meta) and part.description:
            return part.description
        if typing.get_origin(part) is typing.Annotated:
            return _described(part)
    return ""


def _buckets() -> str:
    return (
        "## Histograms\n\nNames of the OpenTelemetry conventions for generative AI. Bounds in seconds:\n"
        f"{', '.join(map(str, TOKEN_SECONDS))} for the time per output token,\n"
        f"{', '.join(map(str, SECONDS))} for everything else.\n"
    )


def _metrics() -> str:
    lines = [
        "## Prometheus",
        "",
        "With `telemetry.prometheus.port` set, `http://HOST:PORT/metrics` has these, as text (0.0.4) or as",
        "OpenMetrics (1.0), as the scraper prefers. Every sample has the label `device`; what a machine does not say",
        "is absent. Labels take their values from bounded sets; counters begin at 0 with every known reason code when",
        "the agent starts.",
        "",
        "| metric | type | labels | |",
        "|---|---|---|---|",
    ]
    for family in FAMILIES:
        labels = " ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines) + "\n"


def _throttling() -> str:
    t = throttling
    return (
        "## Throttling\n\n"
        "While the box is strained, the agent answers half as many requests at once, a quarter, and so on to one. It\n"
        f"steps up at most every {t.STEP_SECONDS:g} s and down after {t.CALM_SECONDS:g} s of calm.\n\n"
        "| reason in `health` | steps up | calm |\n|---|---|---|\n"
        f"| `throttled_temperature` | the cores are slowed down, or a sensor is less than {t.MARGIN_HIGH:g} °C below "
        f"its limit | {t.MARGIN_LOW:g} °C below, not slowed down |\n"
        f"| `throttled_memory` | everything waited for memory in {t.MEMORY_FULL_HIGH:g} % of the time, less than "
        f"{100 * t.AVAILABLE_HIGH:g} % left, or swapping while less than {200 * t.AVAILABLE_LOW:g} % is left | "
        f"{t.MEMORY_FULL_LOW:g} %, {100 * t.AVAILABLE_LOW:g} % left, no swapping |\n"
    )


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is up to date."""
    if "--write" in arguments:
        FILE.write_text(text(), encoding="utf-8")
        return 0
    if not FILE.exists() or FILE.read_text(encoding="utf-8") != text():
        print("docs/TELEMETRY.md is out of date: run python -m agent.telemetry.document --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
