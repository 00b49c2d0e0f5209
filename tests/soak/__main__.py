"""``python -m tests.soak --minutes N``; exit status 1 if an answer was lost or anything else did not hold."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.crash.__main__ import default_bundle
from tests.soak.soak import Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bundle", type=Path, help="a finished bundle directory named tiny (made where not given)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here and leave logs and state behind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        report = Soak(root, arguments.bundle or default_bundle(), arguments.minutes, arguments.seed, print).run()
    for line in (*report.lines(), *report.broken[:50]):
        print(line)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
