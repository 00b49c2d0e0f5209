"""``python -m tests.sabotage [WORD…]``: take out every check whose attack contains one of the words (all without)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from tests.sabotage.checks import CHECKS, Check
from tests.sabotage.removal import resolve
from tests.sabotage.trial import try_without


def verdict(check: Check) -> str | None:
    """What is wrong: a test that stays green without the check, or a trial that could not be made."""
    result = try_without(check.cuts, check.tests, hangs=check.hangs)
    if result.broken is not None:
        return f"says nothing: {result.broken}"
    green = [test for test in check.tests if test not in result.failed]
    return f"not noticed by {', '.join(green)}" if green else None


def unresolved(checks: Iterable[Check]) -> list[str]:
    """What the table names and the code does not have."""
    found = []
    for check in checks:
        try:
            resolve(check.cuts)
        except LookupError as error:
            found.append(f"{check.attack}: {error}")
    return found


def main(words: list[str], checks: Iterable[Check] = CHECKS) -> int:
    chosen = [check for check in checks if not words or any(word in check.attack for word in words)]
    if missing := unresolved(chosen):
        print("the table does not fit the code, nothing was tried:", *missing, sep="\n  ")
        return 1
    begun = time.monotonic()
    wrong = 0
    for check in chosen:
        fault = verdict(check)
        wrong += fault is not None
        print(f"{'FAULT  ' if fault else 'noticed'}  {check.attack}{f': {fault}' if fault else ''}", flush=True)
    tests = {test for check in chosen for test in check.tests}
    cuts = sum(len(check.cuts) for check in chosen)
    print(
        f"{len(chosen)} checks taken out ({cuts} places), {len(chosen) - wrong} noticed by {len(tests)} tests, "
        f"{time.monotonic() - begun:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
