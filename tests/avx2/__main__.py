"""``python -m tests.avx2 [PYTEST ARGUMENTS]``: pytest with the kernels of an AVX2 machine, or why it runs without.

``python -m tests.avx2 -m MODULE …`` runs something else with them, a benchmark say.
"""

from __future__ import annotations

import os
import sys

from tests.avx2 import environment, how
from tests.kept import CACHE

ENGINE = [
    "tests/agent/engine",
    "tests/agent/worker/test_real_worker.py",
    "tests/agent/install/update/test_worker_start.py",
]
"""What runs on a model, without arguments."""


def main(arguments: list[str]) -> int:
    """Becomes what is to be run."""
    kind, why = how()
    print(f"kernels of AVX2: {kind}: {why}", flush=True)
    if kind == "forcible":
        os.environ.update(environment(CACHE / "avx2"))
    command = arguments if arguments[:1] == ["-m"] else ["-m", "pytest", "-q", *(arguments or ENGINE)]
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
