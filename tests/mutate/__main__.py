"""``python -m tests.mutate --minutes N [--seed S]``: random changes for N minutes, counted by outcome."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.mutate.mutation import Verdict, make_sample, random_change


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: from the clock)")
    arguments = parser.parse_args()
    seed = time.time_ns() if arguments.seed is None else arguments.seed
    source = random.Random(seed)
    verdicts: Counter[Verdict] = Counter()
    reasons: Counter[str] = Counter()
    end = time.monotonic() + 60 * arguments.minutes
    print(f"changing a published repository and its .edgebundle file for {arguments.minutes:g} minutes, seed {seed}")
    with tempfile.TemporaryDirectory() as scratch:
        sample = make_sample(Path(scratch))
        while time.monotonic() < end:
            try:
                _, verdict, reason = random_change(sample, source, Path(scratch))
            except Exception as error:
                print(
                    f"change {sum(verdicts.values()) + 1} with seed {seed} was neither refused nor harmless: {error!r}"
                )
                return 1
            verdicts[verdict] += 1
            reasons[str(reason)] += reason is not None
    print(f"{sum(verdicts.values())} tried · " + " · ".join(f"{verdicts[verdict]} {verdict}" for verdict in Verdict))
    for reason_name, count in reasons.most_common():
        print(f"{count:8} {reason_name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
