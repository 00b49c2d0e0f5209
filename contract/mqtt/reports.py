"""What a device does about ``desired``: the ``reported`` document."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from contract.mqtt.desired import BundleReference
from contract.mqtt.faults import ReportedError


class Progress(Struct, frozen=True):
    """Bytes of the bundle: done (fetched or reused), total, reused; ``seconds_left`` when it can be said."""

    done: int
    total: int
    reused: int = 0
    seconds_left: float | UnsetType = UNSET


class Probation(Struct, frozen=True):
    """How far the candidate that serves now is: it is kept after ``of_seconds``, or once ``of_requests`` were answered,
    where a number of them is asked for.
    """

    seconds: float
    of_seconds: float
    requests: int
    of_requests: int | UnsetType = UNSET


class Waiting(Struct, frozen=True):
    """Why the desired bundle is not made active yet: its time has not come, or this device does not know the time.

    It may go on ``until`` (UTC, RFC 3339); ``prefetched``: its bytes are here and verified. ``message`` for people.
    """

    reason: Literal["waiting_for_window", "waiting_for_not_before", "clock_not_set"]
    message: str
    prefetched: bool = False
    until: str | UnsetType = UNSET


class PlannedSwap(Struct, frozen=True):
    """How a candidate will take over from the bundle that serves, and ``why``: both run for a moment (``overlap``), the
    old one ends first (``drain``), or it ends before the candidate is even tried (``aside``). Requests wait for at most
    ``pause_seconds`` once what runs has ended.
    """

    mode: Literal["overlap", "drain", "aside"]
    pause_seconds: float
    why: str


class BundleState(Struct, frozen=True):
    name: str
    version: str
    digest: str
    security_epoch: int


Phase = Literal[
    "IDLE",
    "RESOLVE",
    "CHECK",
    "RESERVE",
    "FETCH",
    "VERIFY",
    "SEAL",
    "CANARY",
    "SWITCH",
    "PROBATION",
    "COMMIT",
    "ROLLBACK",
]


class Reported(Struct, frozen=True):
    """What the device does about ``desired``; ``revision`` echoes it (null when nothing is desired).

    ``warnings`` last as long as what they tell of, and stop nothing: an installed bundle that was revoked, metadata
    that expired or cannot be trusted any more. ``adapters`` are loaded beside the active bundle. ``desired`` is the
    bundle of the document that is followed; absent when none is, or this device's operator chose another one since.
    ``probation`` is there in the phase of that name, ``swap`` while a candidate is on its way to take over, ``waiting``
    while the phase is ``IDLE`` because the policy's time has not come.
    """

    revision: str | None
    phase: Phase
    progress: Progress | None
    active: BundleState | None
    previous: BundleState | None
    error: ReportedError | None
    queue_pause_ms: float | UnsetType = UNSET
    warnings: list[ReportedError] | UnsetType = UNSET
    adapters: list[BundleState] | UnsetType = UNSET
    desired: BundleReference | UnsetType = UNSET
    probation: Probation | UnsetType = UNSET
    swap: PlannedSwap | UnsetType = UNSET
    waiting: Waiting | UnsetType = UNSET
