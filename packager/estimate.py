"""What a build will need, said before it starts, and the refusal when this host does not have it."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
from msgspec import Struct

from contract.errors import BuildRefused, StoreFull
from packager.check import host_threads
from packager.plan import CALIBRATED, BuildPlan

BYTES_PER_PARAMETER = 8
"""Memory at the builder's peak: weights in fp32 twice, once read and once packed. Measured: 7 to 8."""

PROCESS_BYTES = 700 * 2**20
"""The builder's libraries themselves."""

STORED_BITS = {"int4": 5.0, "int8": 9.0, "fp16": 16.0, "bf16": 16.0, "fp32": 32.0}
"""Bits a stored weight, scales included."""

COPIES = 2
"""The graph lies in the cache until the bundle beside it is finished."""

SECONDS_PER_PARAMETER = 1.5e-7
START_SECONDS = 15
"""SmolLM2-135M on two idle cores, nine builds: 12 to 16 s in the model builder, about 10 to run the source, 4 to 22 to
run the bundle; half of that is loading libraries. k-quants take longer, by how much was not measured."""

CALIBRATION_BYTES_PER_PARAMETER = 16
"""The tuning of scales holds the weights in fp32 as rounded and as scaled, their gradients and halves of them."""

CALIBRATION_CORE_SECONDS_PER_PARAMETER = 1.1e-5
"""Measured on 135 million parameters, in core seconds: text 150, source 120, layers 700, table 180, tuning 360."""

_CGROUP = Path("/sys/fs/cgroup")


class Estimate(Struct, frozen=True):
    """What a build needs, roughly and rather too much than too little."""

    memory_bytes: int
    disk_bytes: int
    seconds: float

    def __str__(self) -> str:
        """One line for the display."""
        minutes = max(1, round(self.seconds / 60))
        return (
            f"needs about {self.memory_bytes / 2**30:.1f} GiB of memory, {self.disk_bytes / 2**30:.1f} GiB of disk "
            f"and {minutes} minute{'s' if minutes > 1 else ''}"
        )


def estimate_build(plan: BuildPlan, parameters: int, table_parameters: int = 0) -> Estimate:
    """For ``parameters`` weights, ``table_parameters`` of which are an embedding that stays plain."""
    plain_bits = 32.0 if plan.ep == "cpu" else 16.0
    stored = parameters * STORED_BITS[plan.precision] / 8
    if plan.quantised:
        stored += table_parameters * (plain_bits - STORED_BITS[plan.precision]) / 8
    calibrated = plan.quantizer in CALIBRATED
    per_parameter = CALIBRATION_BYTES_PER_PARAMETER if calibrated else BYTES_PER_PARAMETER
    seconds = START_SECONDS + SECONDS_PER_PARAMETER * parameters
    if plan.kv != "float":
        seconds *= 2  # a first build to measure keys and values on
    if calibrated:
        seconds += CALIBRATION_CORE_SECONDS_PER_PARAMETER * parameters / host_threads()
        stored += 4 * parameters  # the checkpoint between rounding and building, and what it goes on from
    return Estimate(
        memory_bytes=PROCESS_BYTES + per_parameter * parameters, disk_bytes=int(COPIES * stored), seconds=seconds
    )


def refuse_what_cannot_fit(estimate: Estimate, directories: list[Path], memory: int | None = None) -> None:
    """Refuse a build that this host cannot finish; ``memory`` is what it has, found out when not given.

    Raises:
        BuildRefused: not enough memory.
        StoreFull: not enough room in one of ``directories``.
    """
    memory = available_memory() if memory is None else memory
    if estimate.memory_bytes > memory:
        raise BuildRefused(
            f"this build {estimate}, and only {memory / 2**30:.1f} GiB of memory are free; "
            "build on a larger machine, or end other programs"
        )
    for directory in directories:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if estimate.disk_bytes > free:
            raise StoreFull(f"this build {estimate}, and only {free / 2**30:.1f} GiB are free in {existing}")


def available_memory() -> int:
    """Bytes that a new process can have: free memory and swap, within this group's limit."""
    free = int(psutil.virtual_memory().available + psutil.swap_memory().free)
    try:
        limit = (_CGROUP / "memory.max").read_text("ascii").strip()
        used = int((_CGROUP / "memory.current").read_text("ascii"))
    except (OSError, ValueError):
        return free
    return min(free, int(limit) - used) if limit.isdigit() else free
