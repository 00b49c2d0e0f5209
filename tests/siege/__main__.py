"""``python -m tests.siege --minutes N [--seed S]``; exit status 1 if anything did not hold.

The seed is printed; what was sent and broken since the last good check is kept as a file, which ``--replay`` sends
again. ``--shrink`` makes it smaller: halves and quarters of it, as long as something still does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.__main__ import default_bundle
from tests.siege.shots import Step, read_step
from tests.siege.shrinking import shrink
from tests.siege.siege import Report, Siege

KEPT = Path("build/siege")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.siege", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: from the clock)")
    parser.add_argument("--bundle", type=Path, help="a finished bundle directory named tiny (made where not given)")
    parser.add_argument("--keep", type=Path, default=KEPT, metavar="DIR", help=f"work here (default {KEPT})")
    parser.add_argument("--go-on", action="store_true", help="do not end at the first round that is not good")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send what such a file holds, and check once")
    parser.add_argument("--shrink", type=Path, metavar="FILE", help="find fewer of its lines that break something, too")
    arguments = parser.parse_args()
    seed = time.time_ns() % 10**9 if arguments.seed is None else arguments.seed
    bundle = arguments.bundle or default_bundle()
    root: Path = arguments.keep.absolute()
    if arguments.shrink:
        return _shrink(arguments.shrink, bundle)
    steps = read_steps(arguments.replay) if arguments.replay else None
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    print(f"seed {seed}; logs and state in {root}", flush=True)
    siege = Siege(root, bundle, seed, lambda line: print(line, flush=True))
    report = siege.run(arguments.minutes, go_on=arguments.go_on) if steps is None else siege.replay(steps)
    for line in (*report.lines(), *report.broken[:50]):
        print(line)
    return 1 if report.broken else 0


def read_steps(path: Path) -> list[Step]:
    return [read_step(line) for line in path.read_text().splitlines()]


def _shrink(path: Path, bundle: Path) -> int:
    def breaks(steps: list[Step]) -> bool:
        with tempfile.TemporaryDirectory() as scratch:
            report: Report = Siege(Path(scratch), bundle, 0, lambda _line: None).replay(steps)
        print(f"{len(steps)} lines: {report.broken[:1] or 'all holds'}", flush=True)
        return bool(report.broken)

    fewer = shrink(read_steps(path), breaks)
    target = path.with_suffix(".fewer.jsonl")
    target.write_text("".join(step.line() + "\n" for step in fewer))
    print(f"{len(fewer)} lines: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
