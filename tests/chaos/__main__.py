"""``python -m tests.chaos --requests N [--seed S] [--every K] [--bundle DIR …]``

Exit status 1 if a request had no result, or two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.storm import Storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="one result each, whatever breaks")
    parser.add_argument("--requests", type=int, default=5000, metavar="N", help="default 5000")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="default 1")
    parser.add_argument("--every", type=int, default=100, metavar="K", help="something breaks every K answers")
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], metavar="DIR",
        help="a real bundle to serve and swap to, instead of an engine without a model; give two",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here and leave logs and state behind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        report = Storm(root, arguments.requests, arguments.seed, arguments.every, print, arguments.bundle).run()
    print(
        f"{report.requests} requests, asked {report.asked} times, {report.delivered} last frames, "
        f"{report.seconds:.0f} s\ndisturbances: {dict(report.disturbances)}\nresults: {dict(report.outcomes)}\n"
        f"answered by: {dict(report.bundles)}, {report.again} of them after a first attempt was lost"
    )
    for line in report.broken:
        print(line)
    if not report.broken:
        print(f"exactly one result for each of {report.requests} requests")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
