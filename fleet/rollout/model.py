"""The records: a rollout with its waves and targets, as they are stored."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from fleet.rollout.counters import Counters
from fleet.rollout.spec import Spec
from fleet.rollout.states import EXECUTED, FAILURES, OPEN, RolloutState, TargetState, TurnBack, WaveState


class Bundle(Struct, frozen=True):
    """A bundle by name; ``digest`` where it is known."""

    name: str
    version: str
    digest: str = ""

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


class Target(Struct, frozen=True, kw_only=True):
    """One device of one rollout. Times in Unix seconds.

    ``attempt`` counts wishes that were sent; ``previous`` is what the device ran before the first; ``baseline`` is the
    increase of its counters in the 24 hours before, ``at_active`` their state when the bundle became active. ``seen``:
    the broker was seen to hold our wish. ``turn_back_deadline``: until when being turned back is waited for.
    """

    device: str
    wave: int
    hardware: str = ""
    site: str = ""
    state: TargetState = TargetState.PENDING
    reason: str = ""
    message: str = ""
    attempt: int = 0
    asked_at: float | None = None
    deadline: float | None = None
    active_at: float | None = None
    previous: Bundle | None = None
    baseline: Counters | None = None
    at_active: Counters | None = None
    seen: bool = False
    turn_back: TurnBack | None = None
    turn_back_deadline: float | None = None

    @property
    def open(self) -> bool:
        return self.state in OPEN

    @property
    def executed(self) -> bool:
        return self.state in EXECUTED


class Wave(Struct, frozen=True):
    """``opened`` and ``bake_until`` in Unix seconds; ``verdict`` for people."""

    number: int
    state: WaveState = WaveState.PENDING
    opened: float | None = None
    bake_until: float | None = None
    verdict: str = ""


class Rollout(Struct, frozen=True, kw_only=True):
    """``ending``: what a rollout that is being turned back becomes. ``version`` rises with every change."""

    id: int
    bundle: Bundle
    spec: Spec
    state: RolloutState = RolloutState.DRAFT
    reason: str = ""
    created_by: str = ""
    approved_by: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    ending: RolloutState = RolloutState.ROLLED_BACK
    waves: tuple[Wave, ...] = ()
    targets: dict[str, Target] = {}

    def revision(self, target: Target) -> str:
        """Of the wish for ``target``; the same for the same attempt, so that sending it twice is harmless."""
        return f"ro{self.id}.w{target.wave}.a{target.attempt}"

    def turn_back_revision(self, target: Target) -> str:
        return f"{self.revision(target)}.back"

    def wave_targets(self, number: int) -> Iterator[Target]:
        return (target for target in self.targets.values() if target.wave == number)

    @property
    def failures(self) -> int:
        return sum(target.state in FAILURES for target in self.targets.values())

    @property
    def executed(self) -> int:
        return sum(target.executed for target in self.targets.values())


CONTROL_WAVE = 0
"""The number that targets of the control group have: they are in no wave, and are skipped from the beginning."""

HELD_OUT = "holdout"
"""Their reason."""
