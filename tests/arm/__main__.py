"""``python -m tests.arm [PYTEST ARGUMENTS]``: boots devices with an aarch64 processor, or says what that lacks."""

from __future__ import annotations

import os
import sys

from tests.arm.debian import missing

PROGRAMS = ("qemu-system-aarch64", "apt-get", "dpkg-deb", "mkfs.ext4")


def main(arguments: list[str]) -> int:
    """Becomes pytest."""
    if lacks := missing(*PROGRAMS, why="a device cannot be booted"):
        print(lacks, file=sys.stderr)
        return 2
    os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-m", "arm", "tests/arm", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
