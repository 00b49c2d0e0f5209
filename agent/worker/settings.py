"""The ``[worker]`` table of the agent's configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.host.cores import computing_cores
from contract.bundle.device_plan import GOOD_LENGTH, MAX_SLOTS
from contract.system.control_groups import cpu_limit


class WorkerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[worker]``: the process that holds a model."""

    threads: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="that compute; 0: the cores that the agent may use, without slow ones beside fast ones",
        ),
    ] = 0
    engine: Annotated[
        Literal["auto", "batched", "genai"],
        Meta(
            description="`batched` runs requests together; `genai` (onnxruntime-genai) runs every kind of model, by "
            "turns; `auto` takes the first that can"
        ),
    ] = "auto"
    max_bytes: Annotated[
        int,
        Meta(ge=0, description="memory for keys and values of requests and known beginnings; 0: by what is free"),
    ] = 0
    slots: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_SLOTS,
            description="requests at once (batched engine): the more share that memory, the shorter they may be; 0: "
            "four, as long as memory allows, more where each has the whole context, fewer where each would have less "
            f"than {GOOD_LENGTH} tokens",
        ),
    ] = 0
    load_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="a load that is silent so long is ended, and any after twelve times that (genai: only that)",
        ),
    ] = 300.0
    stall_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="silence after which a worker counts as hung and is replaced")
    ] = 30.0
    nice: Annotated[int, Meta(ge=0, le=19, description="niceness of workers; 19 is the lowest priority")] = 0
    socket: Annotated[
        Path | None,
        Meta(
            description="where systemd starts a sandboxed worker for every connection; left out: "
            "`EDGE_AGENT_WORKER_SOCKET`, which the unit sets, or else workers are children of the agent"
        ),
    ] = None
    logits_processors: Annotated[
        list[str],
        Meta(
            max_length=8,
            description="names from the entry-point group `edge_bundle.logits_processors`, which change the scores of "
            "every token, in this order",
        ),
    ] = []
    reproducible: Annotated[
        bool,
        Meta(
            description="what a request gets does not depend by a bit on what else runs; a request that runs alone "
            "may take a third longer"
        ),
    ] = False
    speculation: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="tokens of a request that runs alone are drafted from what its text said before, and several "
            "are verified at once (batched engine). `auto`: where no promise is lost by it; `on`: also where answers "
            "would be the same bit for bit without; `off`: never. With `reproducible` only where every bit is the same"
        ),
    ] = "auto"


def usable_threads(settings: WorkerSettings) -> int:
    """Threads for the runtime: as configured, or those of the cores that affinity and the cgroup's quota leave which do
    most together.
    """
    if settings.threads:
        return settings.threads
    cores = len(computing_cores(os.sched_getaffinity(0)))
    quota = cpu_limit()
    return max(1, cores if quota is None else min(cores, int(quota + 0.5)))
