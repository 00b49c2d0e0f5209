"""In which order the files of tests are handed to the processes of ``make test``: the longest first, so that all end
together.

How long each took is in ``durations.json``; ``python -m tests.schedule build/test.xml`` writes it from a report of
``make test``.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DURATIONS = Path(__file__).with_name("durations.json")

UNKNOWN_SECONDS = 10.0
"""A file that was never measured comes before the many short ones."""


def read_durations(kept: Path = DURATIONS) -> dict[str, float]:
    """Seconds by file, relative to the repository's root."""
    durations: dict[str, float] = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    return durations


def longest_first(files: list[str], durations: Mapping[str, float]) -> list[str]:
    """Each of ``files`` once, in the order of how long it takes."""
    return sorted(dict.fromkeys(files), key=lambda file: (-durations.get(file, UNKNOWN_SECONDS), file))


def measured(report: Path) -> dict[str, float]:
    """Seconds by file from a report in JUnit's format, the short ones included."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for case in ET.parse(report).iter("testcase"):
        if file := _file_of(case.get("classname", "")):
            seconds[file] += float(case.get("time", 0))
    return {file: round(seconds[file], 1) for file in sorted(seconds)}


def _file_of(dotted: str) -> str | None:
    """The file of a test by its dotted name, which ends with the class where the test is in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        file = "/".join(parts[:end]) + ".py"
        if (ROOT / file).is_file():
            return file
    return None


def keep(report: Path, kept: Path = DURATIONS) -> None:
    """Write down what ``report`` measured, and keep what is known of files that are not in it and still there."""
    merged = read_durations(kept) | measured(report)
    there = {file: seconds for file, seconds in merged.items() if (ROOT / file).is_file()}
    kept.write_text(json.dumps(there, indent=0, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
