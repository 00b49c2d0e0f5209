"""``edge-packager cache``."""

from __future__ import annotations

import argparse
import math
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from contract.errors import UsageError
from packager.build.cache import KINDS, CacheEntry, clean_cache, list_cache
from packager.build.pipeline import default_cache, disk_errors

EXAMPLES = """examples:
  edge-packager cache list
  edge-packager cache clean                       # everything; the next build converts its source again
  edge-packager cache clean --older-than 30       # only what was not written in the last 30 days
  edge-packager cache clean checkpoints graphs

Names with a dot before them are being made, or were left by a build that was killed; a calibration resumes from them.
Converted and calibrated checkpoints are removed by builds, too, those used longest ago first, where there are more than
40 GB of them; none that was used within a day. What a running build uses is removed when that has ended.

exit status: 0 done, 2 no such kind, 5 the disk
"""

DAY_SECONDS = 24 * 3600


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="what is kept, and how large it is")
    cleaning = actions.add_parser("clean", help="remove it; running builds keep what they use until they have ended")
    cleaning.add_argument("kind", nargs="*", metavar="KIND", help=f"one or more of {', '.join(KINDS)} (all)")
    cleaning.add_argument("--older-than", type=float, metavar="DAYS", help="only what was last written before that")
    for action in (listing, cleaning):
        action.add_argument("--cache", type=Path, metavar="DIR", help="the cache directory ($EDGE_CACHE)")
        action.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    cache = arguments.cache or default_cache()
    with disk_errors(f"{'reading' if arguments.action == 'list' else 'cleaning'} the cache"):
        if arguments.action == "list":
            entries = list_cache(cache)
        else:
            limit = _limit(arguments.older_than)
            entries = clean_cache(cache, arguments.kind, older_than_unix=limit)
    if arguments.json:
        print(msgspec.json.encode({"cache": str(cache), "entries": entries}).decode())
        return 0
    count = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    total = f"{sum(entry.size for entry in entries) / 1e6:,.1f} MB"
    if arguments.action == "list":
        print("\n".join(_table(entries)))
        print(f"{count}, {total} in {cache}")
    else:
        print(f"removed {count}, {total}, from {cache}")
    return 0


def _limit(days: float | None) -> float | None:
    """When what is removed was written at the latest.

    Raises:
        UsageError: it is no number of days.
    """
    if days is None:
        return None
    if not (math.isfinite(days) and days >= 0):
        raise UsageError(f"--older-than {days:g} is no number of days; give one from 0 on", field="older-than")
    return time.time() - days * DAY_SECONDS


def _table(entries: list[CacheEntry]) -> list[str]:
    lines = [f"{'KIND':14} {'SIZE':>12}  {'WRITTEN':16}  ENTRY"]
    for entry in entries:
        written = datetime.fromtimestamp(entry.used_unix, UTC).strftime("%Y-%m-%d %H:%M")
        lines.append(f"{entry.kind:14} {entry.size / 1e6:9,.1f} MB  {written}  {entry.name}")
    return lines
