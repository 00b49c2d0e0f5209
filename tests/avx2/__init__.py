"""The kernels of an AVX2 machine on a newer one: ``python -m tests.avx2 PYTEST_ARGUMENTS`` runs tests with them.

Most boxes have AVX2 and no VNNI; most machines that test this have it, and their kernels differ where it counts: one
row alone, or several. onnxruntime has no switch for that, but the processor has one: ``mask.c`` (compiled on demand,
loaded with LD_PRELOAD, inherited by every worker) lets CPUID fault and leaves out what is newer than AVX2.

Where a processor cannot be forced, nothing is skipped in silence: one that has nothing newer than AVX2 takes these
kernels anyway, so the suite as it is says the same; one that does and has no CPUID faulting (AMD before Linux learnt
its switch), or is no x86-64, has the recorded figures of AVX2 (``tests/agent/engine/kinds.py``), and says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("mask.c")
FORCED = "EDGE_AVX2"
"""In the environment of what runs below the mask."""

NEWER = frozenset({"avx512f", "avx_vnni", "avx512_vnni", "amx_tile", "avx10"})

How = Literal["forced", "forcible", "own", "impossible"]


def how(cpuinfo: str | None = None, machine: str | None = None) -> tuple[How, str]:
    """Whether this process has AVX2's kernels (``forced``, or its processor's ``own``) or could have them, and why."""
    if os.environ.get(FORCED):
        return "forced", "newer instructions are hidden from this process"
    machine = machine or platform.machine()
    if machine != "x86_64":
        return "impossible", f"{machine} has kernels of its own, which the suite tests as they are"
    found = re.search(r"^flags\s*: (.*)$", cpuinfo or Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    if not flags & NEWER:
        return "own", "this processor has nothing newer than AVX2: the suite tests its kernels as it is"
    if "cpuid_fault" not in flags:
        return "impossible", "this processor has newer instructions than AVX2 and no CPUID faulting to hide them"
    return "forcible", "this processor can hide what is newer than AVX2"


def environment(shelf: Path) -> dict[str, str]:
    """What a process needs to have AVX2's kernels; ``shelf`` keeps the compiled library.

    Raises:
        RuntimeError: there is no C compiler, or it fails.
    """
    before = os.environ.get("LD_PRELOAD")
    return {
        **os.environ,
        FORCED: "1",
        "LD_PRELOAD": " ".join([str(library(shelf)), *([before] if before else [])]),
    }


def library(shelf: Path) -> Path:
    """The compiled mask, made once for each state of its source."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    target = shelf / f"mask-{digest}.so"
    shelf.mkdir(parents=True, exist_ok=True)
    with (shelf / "mask.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            return target
        if compiler is None:
            raise RuntimeError("hiding instructions needs a C compiler; on Debian: apt install gcc libc6-dev")
        partial = target.with_suffix(".partial")
        command = [compiler, "-Wall", "-O2", "-shared", "-fPIC", "-o", str(partial), str(SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{SOURCE} does not compile: {done.stderr.strip()}")
        partial.rename(target)
    return target


def visible() -> set[str]:
    """Those newer instructions that a library in this process finds when it asks the processor."""
    from numpy._core._multiarray_umath import __cpu_features__  # what numpy asked for at its import

    return {name for name, there in __cpu_features__.items() if there and name.startswith("AVX512")}
