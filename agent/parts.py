"""The parts of a running agent, as :mod:`agent.app` puts them together."""

from __future__ import annotations

import os

from msgspec import Struct

from agent.frontend import Frontend
from agent.install.reconciler import Reconciler
from agent.serving.serving import Serving
from agent.state.opening import State
from agent.telemetry.loop import TelemetryLoop
from agent.telemetry.system import SelfReported


class Parts(Struct, frozen=True):
    """What an agent consists of."""

    frontend: Frontend
    telemetry: TelemetryLoop
    reconciler: Reconciler
    state: State


def named_processes(serving: Serving) -> dict[int, str]:
    """The agent's processes by id, each with what to call it."""
    found = {os.getpid(): "agent"}
    for replica in serving.replicas:
        if replica.worker is not None:
            found[replica.worker.pid] = f"worker {replica.bundle.manifest.reference}"
    return found


def self_reported(serving: Serving) -> dict[int, SelfReported]:
    """Workers in an account of their own, which only they themselves can look at."""
    found = {}
    for replica in serving.replicas:
        if replica.worker is not None and replica.worker.usage is not None:
            usage, at = replica.worker.usage
            name = f"worker {replica.bundle.manifest.reference}"
            found[usage.pid] = SelfReported(name, usage.rss_bytes, usage.pss_bytes, usage.cpu_seconds, at)
    return found
