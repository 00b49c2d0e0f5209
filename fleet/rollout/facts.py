"""What is known of the devices when it is decided what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from fleet.rollout.canary import Scores
from fleet.rollout.counters import Counters
from fleet.rollout.model import Bundle


class Report(Struct, frozen=True):
    """What a device reports. ``error`` is a reason code, ``retries`` that the device tries again by itself;
    ``followed`` is the bundle of the document that it follows, if it says so. ``waiting``: the device's word for what
    it waits for before it activates, ``prefetched`` that it has fetched the bundle already.
    """

    revision: str | None
    phase: str
    active: Bundle | None = None
    previous: Bundle | None = None
    error: str = ""
    message: str = ""
    retries: bool = False
    followed: str = ""
    waiting: str = ""
    prefetched: bool = False


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """One device. ``seen_at``: when it was last known to be online; ``heard_at``: when its counters were last heard.

    ``day_before``: its counters 24 hours ago, or when it was first heard. ``desired``: the revision that the broker
    holds for it, "" for a wish that was withdrawn, None where that is not known. ``reliable``: False where what it
    says cannot be: counters that fall, two devices under one name.
    """

    device: str
    online: bool = False
    seen_at: float | None = None
    pinned: bool = False
    report: Report | None = None
    ready: bool | None = None
    counters: Counters | None = None
    heard_at: float | None = None
    day_before: Counters | None = None
    memory_available: float | None = None
    desired: str | None = None
    reliable: bool = True

    @property
    def active(self) -> Bundle | None:
        return None if self.report is None else self.report.active


def increase_before(facts: DeviceFacts) -> Counters | None:
    """What its counters rose by in the last 24 hours; None where that cannot be said."""
    if facts.counters is None or facts.day_before is None or not facts.reliable:
        return None
    return facts.counters.minus(facts.day_before)


class Newcomer(NamedTuple):
    """A device that a dynamic selection matches since."""

    device: str
    hardware: str
    site: str


class Facts(Struct, frozen=True):
    """``slots``: who downloads at each site and until when, over all rollouts. ``newcomers``: matched by the selection
    of a dynamic rollout, and none of its targets. ``scores``: of the rollout's quality canary.
    """

    devices: Mapping[str, DeviceFacts] = {}
    slots: Mapping[str, Mapping[str, float]] = {}
    newcomers: tuple[Newcomer, ...] = ()
    scores: Scores = {}
