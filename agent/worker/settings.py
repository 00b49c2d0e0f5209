"""The ``[worker]`` table of the agent's configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.host.cores import computing_cores


class WorkerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``threads`` 0: the cores that this process may use, without slow ones beside fast ones (:mod:`agent.host.cores`);
    ``max_bytes`` 0: decided from the memory available.

    ``load_seconds`` bounds loading, ``stall_seconds`` the silence of a worker before it counts as hung (one step on
    a slow device takes a second or two), ``nice`` is its scheduling weakness. ``socket``: where systemd starts a worker
    for every connection, in a sandbox and an account of its own; without it workers are children of the agent.
    ``logits_processors``: names from the entry-point group ``edge_bundle.logits_processors``, which see and may change
    the scores of every token, in this order. ``reproducible``: what a request gets does not depend by a bit on what
    else runs, which costs a lone request a third of its speed where the processor has another kernel for one row;
    without, that kernel is taken and rounds differently (``info.engine`` says by how much).
    """

    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    engine: Literal["auto", "batched", "genai"] = "auto"
    max_bytes: Annotated[int, Meta(ge=0)] = 0
    load_seconds: Annotated[float, Meta(gt=0, le=3600)] = 300.0
    stall_seconds: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    socket: Path | None = None
    logits_processors: Annotated[list[str], Meta(max_length=8)] = []
    reproducible: bool = False


def usable_threads(settings: WorkerSettings) -> int:
    """Threads for the runtime: as configured, or those of the cores that affinity and the cgroup's quota leave which do
    most together.
    """
    if settings.threads:
        return settings.threads
    cores = len(computing_cores(os.sched_getaffinity(0)))
    quota = _cgroup_cores()
    return max(1, cores if quota is None else min(cores, int(quota + 0.5)))


def _cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The tightest CPU quota of our cgroup (version 2) and its parents, in cores; None without one."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        folder = root / next(line[3:] for line in lines if line.startswith("0::")).lstrip("/")
    except (OSError, StopIteration):
        return None
    tightest: float | None = None
    for group in (folder, *folder.parents):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                cores = int(quota) / int(period)
                tightest = cores if tightest is None else min(tightest, cores)
        except (OSError, ValueError):
            pass
        if group == root:
            break
    return tightest
