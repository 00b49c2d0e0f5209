"""What a device says of itself: ``status``, ``info``, ``health`` and events."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from contract.mqtt.faults import ReportedError
from contract.mqtt.reports import BundleState


class Status(Struct, frozen=True):
    """Birth and last will."""

    online: bool
    boot_id: str


class Deviation(Struct, frozen=True):
    """A bound: how far the rounding of other kernels moves one token's logits, and its probabilities in nats
    (Kullback-Leibler divergence).
    """

    logits: float
    nats: float


class EngineInfo(Struct, frozen=True):
    """The loaded model's engine, why it was chosen, what it can do, and how far its process is locked in.

    ``reproducible``: what a request gets is the same, bit for bit, whatever else runs; if not, ``deviation`` bounds the
    difference. ``reproducible_why`` says what makes it so. ``kernels``: which of the runtime's kernels compute and why,
    where there was a choice (ARM with dot-product instructions). ``speculation``: whether tokens are drafted for a
    request that runs alone, and why.
    """

    engine: str
    why: str
    slots: int
    context_length: int
    vocab_size: int
    capabilities: list[str]
    load_seconds: float
    isolation: str
    reproducible: bool = True
    reproducible_why: str = ""
    deviation: Deviation | UnsetType = UNSET
    kernels: str | UnsetType = UNSET
    speculation: str | UnsetType = UNSET
    adapters: list[str] | UnsetType = UNSET

    @property
    def summary(self) -> str:
        """Engine and reasons in one line, for a person."""
        text = f"{self.engine}, {self.slots} at once ({self.why})"
        if self.deviation is not UNSET:
            text += f"; the same answers within {self.deviation.nats:.2g} nats a token whatever else runs"
        elif self.reproducible:
            text += "; the same answers bit for bit whatever else runs"
        text = f"{text}: {self.reproducible_why}" if self.reproducible_why else text
        return text if self.kernels is UNSET else f"{text}; {self.kernels}"


class Limits(Struct, frozen=True):
    """What this device takes and keeps; 0 tokens: no such bound."""

    max_request_bytes: int
    queue: int
    queue_per_client: int
    max_priority: int
    stream_interval_ms: int
    results_kept_seconds: int
    results_kept_bytes: int
    default_max_tokens: int = 0
    max_tokens: int = 0


class Info(Struct, frozen=True):
    """What the device is: identity, versions of agent and runtimes, host, limits, and the model it serves."""

    device: str
    api: str
    groups: list[str]
    versions: dict[str, str]
    host: dict[str, Any]
    limits: Limits
    bundle: BundleState | None
    engine: EngineInfo | None


class BrokerState(Struct, frozen=True, omit_defaults=True):
    """The broker as the device finds it. ``problem``: why there is no connection. ``warnings``: what is wrong with it
    although there is one: it cuts whoever sends large messages, another client uses our client id, it delivers nothing
    to groups.
    """

    address: str
    protocol: str
    connected: bool
    problem: str = ""
    warnings: list[ReportedError] = []


class Health(Struct, frozen=True):
    """Whether the device answers prompts now, and if not, why; ``warnings``: reason codes of what stops nothing.

    ``broker``: which one this was published to, and what is wrong with it. ``message``: how the model's process ended
    or why it does not load, where that is the reason.
    """

    ready: bool
    reasons: list[str]
    queue: int
    active: int
    warnings: list[str] | UnsetType = UNSET
    broker: BrokerState | UnsetType = UNSET
    message: str | UnsetType = UNSET


class Event(Struct, frozen=True):
    """Something happened; ``at`` is UTC, ``detail`` depends on the type."""

    at: str
    detail: dict[str, Any]
