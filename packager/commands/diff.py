"""``edge-packager diff``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from packager.evaluate.comparison import BundleDifference, compare_bundles, find_bundle

EXAMPLES = """examples:
  edge-packager diff smollm2-1.0.0 smollm2-1.1.0                        # two bundle directories
  edge-packager diff smollm2@1.0.0 smollm2@1.1.0 --repo repository      # two published bundles
  edge-packager diff smollm2@1.0.0 smollm2-1.1.0 --json                 # before publishing: what would devices fetch?

exit status: 0 compared (whether or not they differ), 2 not a bundle, 3 a manifest that is not valid, 5 the disk
"""

MAX_SHOWN = 60
"""Characters of one value on the terminal: a canary's text may be long."""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    parser.add_argument("before", metavar="A", help="bundle that devices run: a directory, or NAME@VERSION of --repo")
    parser.add_argument("after", metavar="B", help="bundle that is to replace it")
    parser.add_argument("--repo", type=Path, default=Path("repository"), metavar="DIR", help="default: ./repository")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    found = compare_bundles(find_bundle(arguments.before, arguments.repo), find_bundle(arguments.after, arguments.repo))
    if arguments.json:
        print(msgspec.json.encode(found).decode())
    else:
        print("\n".join(_lines(found)))
    return 0


def _lines(found: BundleDifference) -> list[str]:
    """For a person."""
    if found.identical:
        return [f"{found.before} and {found.after} are the same bundle, byte for byte"]
    share = 100 * found.fetched_bytes / found.total_bytes if found.total_bytes else 0.0
    lines = [
        f"{found.before} -> {found.after}",
        f"  a device that has {found.before} fetches {_size(found.fetched_bytes)} of {_size(found.total_bytes)} "
        f"({share:.1f} %)",
    ]
    if found.files:
        lines += ["", f"{'FILE':44} {'CHANGE':8} {'BEFORE':>10} {'AFTER':>10} {'FETCHED':>10}"]
        lines += [
            f"{change.path:44} {change.change:8} {_size(change.size_before):>10} {_size(change.size_after):>10} "
            f"{_size(change.fetched_bytes):>10}"
            for change in found.files
        ]
    if found.fields:
        width = max(len(change.field) for change in found.fields)
        lines += ["", f"{'MANIFEST':{width}} BEFORE -> AFTER"]
        lines += [
            f"{change.field:{width}} {_value(change.before)} -> {_value(change.after)}" for change in found.fields
        ]
    if found.template:
        lines += ["", "chat template:", *(f"  {line}" for line in found.template)]
    return lines


def _value(value: Any) -> str:
    if value is None:
        return "(none)"
    text = repr(value) if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
