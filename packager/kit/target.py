"""The machine that a kit is for, as pip and the installer on the device name it."""

from __future__ import annotations

import re
from typing import Literal, get_args

from msgspec import Struct

from contract.errors import UsageError

Arch = Literal["x86_64", "aarch64"]
ARCHITECTURES: tuple[str, ...] = get_args(Arch)

NEWEST_GLIBC = 36
"""Debian 12 has glibc 2.36. The runtimes' wheels need 2.28, llguidance's 2.31; none needs more than this so far."""

OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
"""The first manylinux of each architecture; pip takes the names literally and does not know that older ones fit too."""

_PYTHON = re.compile(r"3\.(1[1-9]|[2-9]\d)")


class Target(Struct, frozen=True):
    """``python`` is the device's own minor version, for example ``3.11``: wheels with native code fit one only."""

    arch: Arch
    python: str = "3.11"

    @property
    def name(self) -> str:
        return f"{self.arch}-py{self.python}"

    def pip_options(self) -> list[str]:
        """What makes pip resolve for this machine instead of the one that it runs on."""
        platforms = [
            f"manylinux_2_{minor}_{self.arch}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC[self.arch] - 1, -1)
        ]
        platforms.append(f"manylinux2014_{self.arch}")
        if self.arch == "x86_64":
            platforms += ["manylinux2010_x86_64", "manylinux1_x86_64"]
        options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python]
        for platform in platforms:
            options += ["--platform", platform]
        return options


def check_target(arch: str, python: str) -> Target:
    """Raises:
    UsageError: no kit can be made for that.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(f"there are no runtime wheels for {arch!r}; use {' or '.join(ARCHITECTURES)}", field="arch")
    if _PYTHON.fullmatch(python) is None:
        raise UsageError(f"{python!r} is not a Python that the agent runs on; give 3.11 or newer", field="python")
    return Target("aarch64" if arch == "aarch64" else "x86_64", python)
