"""Writes the state diagram of an update into ``docs/ARCHITECTURE.md`` from the state table.

``python -m agent.install.update.diagram [--write]``.
Without ``--write`` it checks that the page has what the table says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agent.install.update.state_machine import DOWNLOADING, TABLE, Entry, Event, State

FILE = Path(__file__).resolve().parents[3] / "docs" / "ARCHITECTURE.md"

BEGIN, END = "<!-- update states: written by agent.install.update.diagram -->\n", "<!-- end of update states -->\n"


def text() -> str:
    """The diagram, and what is done on entering each state."""
    return "".join([
        "```mermaid\nstateDiagram-v2\n    [*] --> IDLE\n",
        *(f"    {line}\n" for line in _diagram()),
        "```\n\n",
        "| in | event | then | actions, in their order |\n|---|---|---|---|\n",
        *(f"| {line} |\n" for line in _rows()),
    ])  # fmt: skip


def _grouped() -> dict[tuple[State, Entry], list[Event]]:
    groups: dict[tuple[State, Entry], list[Event]] = {}
    for (state, event), entry in TABLE.items():
        groups.setdefault((state, entry), []).append(event)
    return groups


def _diagram() -> list[str]:
    """One arrow for each pair of states; the ends of a download are drawn once, from a state around its states."""
    arrows: dict[tuple[str, State], list[Event]] = {}
    for (state, event), entry in TABLE.items():
        around = "DOWNLOAD" if state in DOWNLOADING and entry.state is State.IDLE else state.value
        events = arrows.setdefault((around, entry.state), [])
        if event not in events:
            events.append(event)
    inner = [
        f"    {start} --> {end}: {_names(events)}"
        for (start, end), events in arrows.items()
        if start in DOWNLOADING and end in DOWNLOADING
    ]
    outer = [
        f"{start} --> {end}: {_names(events)}"
        for (start, end), events in arrows.items()
        if not (start in DOWNLOADING and end in DOWNLOADING)
    ]
    return ["state DOWNLOAD {", *inner, "}", *outer]


def _rows() -> list[str]:
    rows: dict[tuple[str, Entry], list[Event]] = {}
    for (state, entry), events in _grouped().items():
        where = f"{DOWNLOADING[0]} to {DOWNLOADING[-1]}" if _ends_download(state, entry) else state.value
        known = rows.setdefault((where, entry), [])
        known += [event for event in events if event not in known]
    return [
        f"{where} | {_names(events)} | {entry.state}{', committed' if entry.commits else ''} | "
        f"{', '.join(action.value.replace('_', ' ') for action in entry.actions) or '–'}"
        for (where, entry), events in rows.items()
    ]


def _ends_download(state: State, entry: Entry) -> bool:
    return state in DOWNLOADING and entry.state is State.IDLE


def _names(events: list[Event]) -> str:
    return ", ".join(event.value.replace("_", " ") for event in events)


def insert(page: str) -> str:
    """``page`` with the diagram between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + text() + END + after


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    page = FILE.read_text("utf-8")
    if BEGIN not in page or END not in page:
        print(f"{FILE} has lost the marks of the diagram: {BEGIN.strip()} … {END.strip()}", file=sys.stderr)
        return 1
    if arguments == ["--write"]:
        FILE.write_text(insert(page), "utf-8")
        return 0
    if insert(page) != page:
        print(f"{FILE} is not what the state table says: python -m agent.install.update.diagram --write",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
