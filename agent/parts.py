"""The parts of a running agent, as :mod:`agent.app` puts them together."""

from __future__ import annotations

from msgspec import Struct

from agent.frontend import Frontend
from agent.install.reconciler import Reconciler
from agent.state.opening import State
from agent.telemetry.loop import TelemetryLoop


class Parts(Struct, frozen=True):
    """What an agent consists of."""

    frontend: Frontend
    telemetry: TelemetryLoop
    reconciler: Reconciler
    state: State
