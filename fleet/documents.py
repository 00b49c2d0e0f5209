"""What is shown of devices, bundles and rollouts: in the API, whose OpenAPI description is made of these types, and by
the commands with ``--json``.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from fleet.access.roles import Role


class FaultDocument(Struct, omit_defaults=True):
    message: str
    field: str | None = None
    suggestion: str | None = None


class ErrorBody(Struct, omit_defaults=True):
    """``code`` is the HTTP status, ``reason`` one of our reason codes."""

    code: int
    type: str
    message: str
    field: str | None = None
    reason: str | None = None
    details: list[FaultDocument] = []


class ErrorDocument(Struct):
    error: ErrorBody


class DeviceDocument(Struct, kw_only=True):
    """``state``: ready, or why not. ``reliable``: rollouts are judged by what it says. Times in Unix seconds."""

    device: str
    online: bool
    state: str
    bundle: str | None
    site: str | None
    hardware: str | None
    arch: str | None
    agent: str | None
    cores: int | None
    ram: int | None
    groups: list[str]
    labels: dict[str, str]
    pinned: bool
    reliable: bool
    trouble: str | None
    desired: str | None
    seen_at: float | None


class DevicesDocument(Struct):
    """``matching`` of the ``known`` devices; ``next`` is the ``after`` of the next page, null on the last one."""

    devices: list[DeviceDocument]
    matching: int
    online: int
    known: int
    next: str | None


class AttemptDocument(Struct):
    rollout: int
    number: int
    state: str
    asked_at: float
    ended_at: float | None
    reason: str
    message: str


class EventDocument(Struct):
    at: float
    device: str
    kind: str
    detail: str


class DeviceDetailDocument(DeviceDocument, kw_only=True):
    """``phase`` and ``error`` of what it reports; what it was asked and what happened lately, the newest first."""

    phase: str | None
    error: str | None
    attempts: list[AttemptDocument]
    events: list[EventDocument]


class DeviceChange(Struct, forbid_unknown_fields=True):
    """What is left out stays. An empty value takes a label away; ``site`` is where a device stands."""

    labels: Annotated[dict[str, str], Meta(max_length=64)] = {}
    pinned: bool | None = None
    clear_trouble: bool = False


class PointDocument(Struct):
    """One minute of a device: rates of what its counters rose by, null where nothing can be said."""

    at: float
    requests_per_minute: float | None
    error_rate: float | None
    tokens_per_second: float | None
    first_token_p95: float | None


class SeriesDocument(Struct):
    device: str
    points: list[PointDocument]


class BundleDocument(Struct, kw_only=True):
    """``listed`` in the repository, as it was read at ``read_at``; null where no repository is configured.

    ``quality`` as the manifest has it; ``devices`` run it now.
    """

    bundle: str
    digest: str | None
    listed: bool | None
    revoked: bool
    bytes: int | None
    family: str | None
    precision: str | None
    license: str | None
    created: str | None
    quality: dict[str, Any]
    devices: int
    read_at: float | None


class BundlesDocument(Struct):
    bundles: list[BundleDocument]


class GateDocument(Struct):
    """One gate of a wave: what is measured beside what it is compared with, in words."""

    name: str
    outcome: str
    before: str
    now: str
    allowed: str
    text: str


class WaveDocument(Struct, kw_only=True):
    """``targets``: how many are in which state; ``gates``: as they stand now, of waves that are judged."""

    number: int
    state: str
    verdict: str
    opened: float | None
    bake_until: float | None
    targets: dict[str, int]
    gates: list[GateDocument]


class RolloutDocument(Struct, kw_only=True):
    """``devices``: how many of its waves are in which state."""

    rollout: int
    bundle: str
    digest: str | None
    where: str
    state: str
    reason: str
    created_by: str
    approved_by: str | None
    created_at: float
    started_at: float | None
    devices: dict[str, int]
    waves: list[WaveDocument]


class RolloutsDocument(Struct):
    """The newest first; ``next`` is the ``before`` of the next page, null on the last one."""

    rollouts: list[RolloutDocument]
    next: int | None


class TargetDocument(Struct, kw_only=True):
    """``wave`` 0 is the control group, and devices that cannot run the bundle."""

    device: str
    wave: int
    state: str
    reason: str | None
    message: str | None
    attempt: int
    turn_back: str | None


class RolloutDetailDocument(RolloutDocument, kw_only=True):
    """``targets``: every device of it; ``spec`` as it was asked for, times in seconds."""

    spec: dict[str, Any]
    targets: list[TargetDocument]


class WavePlanDocument(Struct, kw_only=True):
    """``prompts``: how many of the quality canary its devices are asked in all, before and after."""

    number: int
    devices: list[str]
    sites: dict[str, int]
    hardware: dict[str, int]
    offline: int
    bytes: int | None
    hours_least: float
    hours_most: float
    prompts: int


class PlanDocument(Struct, kw_only=True):
    """What ``POST /api/v1/rollouts`` would do, or did; ``looked_up``: whether the repository was asked."""

    rollout: int | None
    state: str
    bundle: str
    digest: str | None
    looked_up: bool
    devices: int
    left_out: dict[str, str]
    waves: list[WavePlanDocument]
    hours_least: float
    hours_most: float


class Resume(Struct, forbid_unknown_fields=True):
    """``accept``: why an inconclusive wave passes on your word; without it such a wave bakes again."""

    accept: str | None = None


class AuditDocument(Struct):
    """``hash`` of this line and all before it."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    hash: str


class AuditPageDocument(Struct):
    """The newest first; ``next`` is the ``before`` of the next page, null on the last one."""

    lines: list[AuditDocument]
    next: int | None


class SelfDocument(Struct):
    account: str
    roles: list[Role]
    permissions: list[str]
