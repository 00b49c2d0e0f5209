"""``python -m tests.vocabulary``: retired words in the product packages, one a line; exit status 1 if there are any."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.vocabulary.check import complaints, find_all

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    found = complaints(find_all(ROOT))
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
