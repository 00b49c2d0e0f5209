"""One device or a fleet, drawn with rich. Pure: everything that is shown is handed in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import UNSET
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from contract.mqtt.reports import Probation
from packager.watch.deployment import waiting_text
from packager.watch.fleet import CONTESTED, FETCHES, DeviceEvent, DeviceView, Fleet, printable, reference
from packager.watch.samples import LlmReading
from packager.watch.series import Series, sparkline

SPARK_WIDTH = 60
SMALL_SPARK_WIDTH = 24
"""At most; what is left of a narrow terminal otherwise."""

BESIDE_SPARK = 46
"""Columns of frame, label and number beside a sparkline of one device."""

BESIDE_SMALL_SPARK = 92
"""Columns that a line of a fleet needs without a sparkline."""

LEAST_SPARK = 8
"""A shorter sparkline says nothing."""

LABEL_WIDTH = 12
PROGRESS_WIDTH = 16
LONGEST_NAME = 24
LONGEST_REFERENCE = 32
NARROW_NAME = 14
NARROW_REFERENCE = 20
NARROW_NUMBERS = ["tok/s", "wait", "mem"]
"""Where there is no room for more: 80 columns are for who runs what, and whether it answers."""

SILENT_SECONDS = 60.0
"""No live word for so long, although it is said to be online: said so, since the last will takes a while to come."""

WARM, HOT = 10.0, 2.0
"""°C below a sensor's limit."""

FULL, NEARLY_FULL = 95.0, 85.0
"""Percent of memory or disk."""

GOOD, WORTH_A_LOOK, BAD, FAINT = "green", "yellow", "bold red", "bright_black"


def draw(
    fleet: Fleet, *, title: str, only: str | None, connected: bool, now: float, width: int, height: int
) -> RenderableType:
    """Everything, for a terminal of this size; ``only``: the device that was asked for, if one was."""
    views = sorted(fleet.devices.values(), key=lambda view: _natural(view.name))
    head = _head(title, views, connected)
    if only is not None or len(views) == 1:
        view = fleet.devices.get(only) if only is not None else views[0]
        name = only if only is not None else views[0].name
        body: RenderableType = (
            waiting(name)
            if view is None
            else Group(*_device(view, now, min(SPARK_WIDTH, max(0, width - BESIDE_SPARK))))
        )
        used = 1 if view is None else _device_height(view)
    else:
        room = max(1, height - 12)
        if len(views) > room:
            # What needs somebody must not be among those that do not fit.
            views.sort(key=lambda view: state_of(view, now).style == GOOD and phase_of(view).style != BAD)
        body = _table(views[:room], now, width - BESIDE_SMALL_SPARK) if views else waiting(None)
        used = min(len(views), room) + 4
        if len(views) > room:
            body = Group(body, Text(f"  … and {len(views) - room} more: watch a --group, or one --device", FAINT))
            used += 1
    return Group(head, body, _events(fleet.events, max(3, height - used - 3), show_device=only is None))


def _natural(name: str) -> list[tuple[int, str]]:
    """kitchen-2 before kitchen-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def waiting(name: str | None) -> Text:
    """Nothing was heard yet."""
    what = "a device" if name is None else printable(name)
    return Text(f"  nothing heard of {what} yet: is it switched on, does it use this broker and topic root?", FAINT)


def _head(title: str, views: Sequence[DeviceView], connected: bool) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right")
    online = sum(view.online for view in views)
    right = Text(f"{online} of {len(views)} online", GOOD if online == len(views) and views else WORTH_A_LOOK)
    if not connected:
        right = Text("no connection to the broker; what is shown is old", BAD)
    grid.add_row(Text(title, "bold"), right)
    return grid


def state_of(view: DeviceView, now: float) -> Text:
    """Online and ready, or why not."""
    if view.status is None:
        return Text("?", FAINT)
    if not view.status.online:
        return Text("offline", BAD)
    if view.health is None:
        return Text("online", WORTH_A_LOOK)
    reasons = printable(", ".join(view.health.reasons))
    silent = view.system is not None and view.heard is not None and now - view.heard > SILENT_SECONDS
    if silent:
        return Text(f"silent for {now - (view.heard or 0):.0f} s", WORTH_A_LOOK)
    if not view.health.ready:
        return Text(reasons or "not ready", BAD)
    return Text(f"ready, {reasons}" if reasons else "ready", WORTH_A_LOOK if reasons else GOOD)


def phase_of(view: DeviceView) -> Text:
    """What the installation does; nothing while there is nothing to say."""
    reported = view.reported
    if reported is None:
        return Text("")
    if reported.error is not None:
        return Text(printable(f"{reported.error.message} [{reported.error.reason}]"), BAD)
    if reported.waiting is not UNSET and reported.phase == "IDLE":
        return Text(printable(waiting_text(reported.waiting)), WORTH_A_LOOK)
    if reported.phase == "IDLE":
        return Text("idle", FAINT)
    text = reported.phase.lower()
    if reported.probation is not UNSET:
        text += f" {probation_text(reported.probation)}"
    elif reported.phase in FETCHES and reported.progress is not None and reported.progress.total:
        text += f" {100 * reported.progress.done // reported.progress.total} %"
    return Text(text, "cyan")


def probation_text(probation: Probation) -> str:
    """How far it is, by whichever ends it sooner."""
    text = f"{probation.seconds:.0f}/{probation.of_seconds:.0f} s"
    if probation.of_requests is UNSET:
        return text
    requests = f"{probation.requests}/{probation.of_requests} answers"
    sooner = probation.requests / max(1, probation.of_requests) > probation.seconds / max(1e-9, probation.of_seconds)
    return requests if sooner else text


def fit_reference(text: str, room: int) -> str:
    """NAME@VERSION in ``room`` columns: of what is too long, the name is cut, since versions are what differs."""
    if len(text) <= room:
        return text
    name, at, version = text.rpartition("@")
    left = room - len(at + version) - 1
    return f"{name[:left]}…{at}{version}" if left > 0 else f"…{text[len(text) - room + 1 :]}"


def _table(views: Sequence[DeviceView], now: float, spark: int) -> Table:
    table = Table(expand=True, box=None, header_style=FAINT, padding=(0, 1))
    longest = max(len(view.name) for view in views)
    narrow = spark < LEAST_SPARK
    references = [reference(view.reported.active if view.reported else None) for view in views]
    room = min(max(map(len, references)), NARROW_REFERENCE if narrow else LONGEST_REFERENCE)
    table.add_column(
        "device", no_wrap=True, min_width=min(longest, NARROW_NAME if narrow else LONGEST_NAME), overflow="ellipsis"
    )
    table.add_column("state", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("bundle", overflow="ellipsis", no_wrap=True, min_width=room)
    table.add_column("installation", overflow="ellipsis", no_wrap=True, ratio=1)
    numbers = NARROW_NUMBERS if narrow else ["tok/s", "", "wait", "busy", "°C", "mem"]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True, min_width=4 if name else None)
    for view, active in zip(views, references, strict=True):
        bundle = Text(fit_reference(active, room))
        cells = [Text(view.name, "bold"), state_of(view, now), bundle, phase_of(view)]
        # What an offline device once measured says nothing of now.
        table.add_row(
            *cells, *(_numbers(view, min(spark, SMALL_SPARK_WIDTH)) if view.online or view.status is None else ())
        )
    return table


def _numbers(view: DeviceView, spark: int) -> list[Text]:
    load = view.health or view.llm
    waiting_text = _number(None if load is None else load.queue, "{}")
    if load is not None and load.queue:
        waiting_text.stylize(WORTH_A_LOOK)
    if spark < LEAST_SPARK:
        return [_number(view.speed.series.last, "{:.0f}"), waiting_text, _share(view.memory.last)]
    return [
        _number(view.speed.series.last, "{:.0f}"),
        Text(sparkline(view.speed.series.values, spark), "cyan"),
        waiting_text,
        _number(None if load is None else load.active, "{}"),
        _temperature(view),
        _share(view.memory.last),
    ]


def _device(view: DeviceView, now: float, spark: int) -> list[RenderableType]:
    facts = Table.grid(padding=(0, 1))
    facts.add_column(width=LABEL_WIDTH, style=FAINT, no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("  state", state_of(view, now))
    facts.add_row("  bundle", _bundles(view))
    facts.add_row("  installing", phase_of(view))
    facts.add_row("", _progress(view))
    for line in _warnings(view):
        facts.add_row("  warning", Text(line, WORTH_A_LOOK))
    if view.info is not None:
        facts.add_row("  what", Text(_identity(view), FAINT))
    if view.info is not None and view.info.engine is not None:
        facts.add_row("  engine", Text(printable(view.info.engine.summary), FAINT))
    if view.llm is not None:
        facts.add_row("  answered", _answered(view.llm))
    numbers = Table.grid(padding=(0, 1))
    numbers.add_column(min_width=LABEL_WIDTH, style=FAINT, no_wrap=True)
    numbers.add_column(min_width=22, no_wrap=True)
    numbers.add_column(no_wrap=True, style="cyan")
    speed = view.speed.series
    numbers.add_row("  tokens/s", _number(speed.last, "{:.1f}"), _spark(speed, spark))
    numbers.add_row("  requests", _load(view), _spark(view.queue, spark))
    numbers.add_row("  processors", _percent(view.cpu.last), _spark(view.cpu, spark, 100.0))
    numbers.add_row("  memory", _memory(view), _spark(view.memory, spark, 100.0))
    if view.system is not None and view.system.hottest is not None:
        low, high = 20.0, _limit(view) or 100.0
        line = sparkline(view.temperature.values, spark, low=low, high=high)
        numbers.add_row("  heat", _temperature(view, named=True), line)
    if view.system is not None and view.system.disk is not UNSET:
        disk = view.system.disk
        used = 100 * (1 - disk.free / disk.total) if disk.total else None
        numbers.add_row("  disk", Text(f"{disk.free / 1e9:.1f} GB free", _worry(used)), "")
    return [
        Panel(Group(facts, Text(""), numbers), title=Text(view.name, "bold"), title_align="left", border_style=FAINT)
    ]


def _device_height(view: DeviceView) -> int:
    engine = view.info is not None and view.info.engine is not None
    return 17 + len(_warnings(view)) + 2 * engine + (view.system is not None and view.system.hottest is not None)


def _bundles(view: DeviceView) -> Text:
    if view.reported is None:
        return Text("-", FAINT)
    text = Text(reference(view.reported.active), "bold")
    if view.reported.previous is not None:
        text.append(f"   before: {reference(view.reported.previous)}", FAINT)
    return text


def _progress(view: DeviceView) -> RenderableType:
    reported = view.reported
    grid = Table.grid(padding=(0, 1))
    if reported is not None and reported.probation is not UNSET:
        probation = reported.probation
        text = f"{probation.seconds:.0f} of {probation.of_seconds:.0f} s"
        if probation.of_requests is not UNSET:
            text += f", or {probation.requests} of {probation.of_requests} answers"
        share = ProgressBar(
            total=max(1e-9, probation.of_seconds),
            completed=probation.seconds,
            width=PROGRESS_WIDTH,
            complete_style="cyan",
        )
        grid.add_row(share, Text(text))
        return grid
    progress = None if reported is None or reported.phase not in FETCHES else reported.progress
    if progress is None or not progress.total:
        return Text("")
    text = f"{progress.done / 1e6:.1f} of {progress.total / 1e6:.1f} MB"
    if progress.reused:
        text += f", {progress.reused / 1e6:.1f} were here"
    if progress.seconds_left is not UNSET:
        text += f", {progress.seconds_left:.0f} s left"
    grid.add_row(
        ProgressBar(total=progress.total, completed=progress.done, width=PROGRESS_WIDTH, complete_style="cyan"),
        Text(text),
    )
    return grid


def _warnings(view: DeviceView) -> list[str]:
    found = [] if view.reported is None or view.reported.warnings is UNSET else list(view.reported.warnings)
    if view.health is not None and view.health.broker is not UNSET:
        found += view.health.broker.warnings
    lines = [printable(f"{each.message} [{each.reason}]") for each in found]
    return [*lines, CONTESTED] if view.contested else lines


def _identity(view: DeviceView) -> str:
    assert view.info is not None
    parts = [f"agent {view.info.versions.get('agent', '?')}"]
    host = view.info.host
    if isinstance(host.get("cores"), int) and isinstance(host.get("ram_bytes"), int):
        parts.append(f"{host.get('arch', '?')}, {host['cores']} cores, {host['ram_bytes'] / 2**30:.1f} GiB")
    if view.info.engine is not None:
        parts.append(view.info.engine.isolation)
    if view.info.groups:
        parts.append("in " + ", ".join(view.info.groups))
    return printable(" · ".join(parts))


def _answered(llm: LlmReading) -> Text:
    text = Text(f"{sum(llm.requests.values())}")
    details = [f"{name} {count}" for name, count in sorted(llm.requests.items())]
    details += [f"refused: {name} {count}" for name, count in sorted(llm.refused.items())]
    if llm.crashes:
        details.append(f"crashed workers {llm.crashes}")
    if llm.first_token is not UNSET and llm.first_token.mean is not None:
        details.append(f"first token after {llm.first_token.mean:.2f} s")
    text.append(printable("".join(f" · {each}" for each in details)), FAINT)
    return text


def _load(view: DeviceView) -> Text:
    # Health is published at every change, telemetry at an interval: the newer one speaks of now.
    source = view.health or view.llm
    if source is None:
        return Text("-", FAINT)
    return Text(f"{source.queue} wait, {source.active} active", WORTH_A_LOOK if source.queue else "")


def _memory(view: DeviceView) -> Text:
    memory = view.system.memory if view.system is not None else UNSET
    if memory is UNSET:
        return Text("-", FAINT)
    text = f"{(memory.total - memory.available) / 2**30:.1f} of {memory.total / 2**30:.1f} GiB"
    return Text(text, _worry(view.memory.last))


def _limit(view: DeviceView) -> float | None:
    system = view.system
    if system is None or system.hottest is None or system.temperature_limits is UNSET:
        return None
    return system.temperature_limits.get(system.hottest[0])


def _temperature(view: DeviceView, *, named: bool = False) -> Text:
    hottest = view.system.hottest if view.system is not None else None
    if hottest is None:
        return Text("-", FAINT)
    limit = _limit(view)
    left = None if limit is None else limit - hottest[1]
    slowed = view.system is not None and view.system.throttling is True
    style = BAD if slowed or (left is not None and left < HOT) else WORTH_A_LOOK if left and left < WARM else ""
    text = f"{hottest[1]:.0f}"
    if named:
        text += f" °C{' slowed down' if slowed else ''} {printable(hottest[0])[:12]}"
    return Text(text, style)


def _spark(series: Series, width: int, high: float | None = None) -> str:
    return sparkline(series.values, width, high=high)


def _number(value: float | None, form: str) -> Text:
    return Text("-", FAINT) if value is None else Text(form.format(value))


def _percent(value: float | None) -> Text:
    return Text("-", FAINT) if value is None else Text(f"{value:.0f} %")


def _share(value: float | None) -> Text:
    return Text("-", FAINT) if value is None else Text(f"{value:.0f} %", _worry(value))


def _worry(percent: float | None) -> str:
    if percent is None:
        return FAINT
    return BAD if percent > FULL else WORTH_A_LOOK if percent > NEARLY_FULL else ""


_EVENT_STYLES = {
    "install": GOOD,
    "swap": GOOD,
    "rollback": BAD,
    "refused": BAD,
    "throttle": WORTH_A_LOOK,
    "broker": BAD,
}


def _events(events: Iterable[DeviceEvent], room: int, *, show_device: bool) -> RenderableType:
    last = list(events)[-room:]
    if not last:
        return Text("\n  no events since this watch began", FAINT)
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=10, style=FAINT, no_wrap=True)
    if show_device:
        grid.add_column(no_wrap=True, style="bold", max_width=24, overflow="ellipsis")
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for each in reversed(last):
        # 2026-01-02T03:04:05.678Z: the time of day is enough beside a live view
        cells = [Text(f"  {each.at[11:19]}"), Text(each.what, _EVENT_STYLES.get(each.what, "")), Text(each.text)]
        if show_device:
            cells.insert(1, Text(each.device))
        grid.add_row(*cells)
    return Group(Text(""), grid)
