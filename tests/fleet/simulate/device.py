"""One simulated device: what it does about a wish, phase by phase, and what it counts. Pure: the clock is handed in."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from contract.mqtt.messages import (
    BundleReference,
    BundleState,
    Health,
    Info,
    Limits,
    Phase,
    Reported,
    ReportedError,
    Status,
    encode,
)
from contract.mqtt.reading import parse_desired

PHASES: tuple[Phase, ...] = ("RESOLVE", "CHECK", "FETCH", "VERIFY", "SEAL", "CANARY", "SWITCH", "PROBATION", "COMMIT")
BOUNDS = [0.1, 0.5, 1.0, 5.0]
FIRST = "model@1.0.0"


@dataclass(frozen=True)
class Behaviour:
    """What a bundle does on every device: ``fails`` in a phase with a reason, or is ``speed`` times as fast."""

    fails: Phase | None = None
    reason: str = "canary_drift"
    speed: float = 1.0


@dataclass(frozen=True)
class Message:
    """``topic`` below the device's own."""

    topic: str
    payload: bytes
    retain: bool


def digest_of(reference: str) -> str:
    return random.Random(reference).randbytes(32).hex()


def state_of(reference: str) -> BundleState:
    name, _, version = reference.partition("@")
    return BundleState(name, version, digest_of(reference), 0)


@dataclass(eq=False)
class SimulatedDevice:
    """``pace``: seconds a phase takes; ``bundles``: how those behave that do not behave well."""

    name: str
    pace: float = 0.05
    requests_per_second: float = 200.0
    bundles: Mapping[str, Behaviour] = field(default_factory=dict)
    active: str = FIRST
    previous: str | None = None
    boot: str = "boot-1"
    started: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.name)
        self.wishes: list[str] = []
        """Revisions that were followed, in their order."""
        self.installed: list[str] = []
        self._revision: str | None = None
        self._desired: str | None = None
        self._error: ReportedError | None = None
        self._phase: Phase = "IDLE"
        self._next: float | None = None
        self._requests = 0.0
        self._token_seconds = 0.0
        self._counted_at: float | None = None

    @property
    def due(self) -> float | None:
        """When it does something by itself."""
        return self._next

    def birth(self, now: float) -> list[Message]:
        """What it says after each connect."""
        self.started = self.started or now
        return [
            Message("status", encode(Status(True, self.boot)), True),
            Message("info", encode(self._info()), True),
            Message("health", encode(Health(True, [], 0, 0)), True),
            self._report(),
        ]

    def will(self) -> Message:
        return Message("status", encode(Status(False, self.boot)), True)

    def _info(self) -> Info:
        number = int(self.name.rpartition("-")[2]) if self.name.rpartition("-")[2].isdigit() else 0
        host = {"arch": ("x86_64", "aarch64")[number % 2], "cores": 4, "ram_bytes": (4, 8)[number % 3 == 0] * 2**30}
        return Info(self.name, "1", ["simulated"], {"agent": "0.1.0"}, host, Limits(1, 1, 1, 1, 50, 1, 1),
                    state_of(self.active), None)  # fmt: skip

    def wish(self, payload: bytes, now: float) -> list[Message]:
        """The retained document came: the first time, or again after a connect, when it hurries nothing."""
        desired = parse_desired(payload)
        if desired is None:
            self._revision = self._desired = None
            return [self._report()]
        if desired.revision == self._revision:
            return []
        self._revision = desired.revision
        self._desired = f"{desired.bundle.name}@{desired.bundle.version}"
        self.wishes.append(desired.revision)
        self._error = None
        if self._desired == self.active:
            self._phase, self._next = "IDLE", None
        else:
            self._phase, self._next = "RESOLVE", now + self._pace()
        return [self._report()]

    def _pace(self) -> float:
        return self.pace * self._random.uniform(0.5, 1.5)

    def tick(self, now: float) -> list[Message]:
        """What happens by itself until ``now``."""
        found: list[Message] = []
        while self._next is not None and now >= self._next:
            found += self._step(self._next)
        return found

    def _step(self, at: float) -> list[Message]:
        assert self._desired is not None
        behaviour = self.bundles.get(self._desired, Behaviour())
        if self._phase == behaviour.fails:
            self._error = ReportedError(behaviour.reason, f"the bundle failed in {self._phase}")
            self._phase, self._next = "IDLE", None
            if self.active == self._desired and self.previous is not None:
                self.active = self.previous
            return [self._report()]
        place = PHASES.index(self._phase)
        if self._phase == "SWITCH":
            self.count(at)
            self.previous, self.active = self.active, self._desired
            self.installed.append(self._desired)
        if place + 1 < len(PHASES):
            self._phase, self._next = PHASES[place + 1], at + self._pace()
        else:
            self._phase, self._next = "IDLE", None
        return [self._report()]

    def _report(self) -> Message:
        followed: Any = msgspec.UNSET
        if self._desired is not None:
            followed = BundleReference(*self._desired.split("@"))
        previous = None if self.previous is None else state_of(self.previous)
        reported = Reported(
            self._revision, self._phase, None, state_of(self.active), previous, self._error, desired=followed
        )
        return Message("reported", encode(reported), True)

    def count(self, now: float) -> None:
        """Requests that were answered until ``now``, at the active bundle's speed."""
        if self._counted_at is not None:
            count = (now - self._counted_at) * self.requests_per_second
            self._requests += count
            self._token_seconds += count * 0.05 / self.bundles.get(self.active, Behaviour()).speed
        self._counted_at = now

    def telemetry(self, now: float) -> list[Message]:
        self.count(now)
        count = int(self._requests)
        llm = {
            "start": self.started,
            "requests": {"stop": count},
            "crashes": 0,
            "gen_ai.server.time_to_first_token": {
                "count": count, "sum": count * 0.05, "bounds": BOUNDS, "cumulative": [count] * (len(BOUNDS) + 1),
            },
            "gen_ai.server.time_per_output_token": {
                "count": count, "sum": self._token_seconds * count / max(self._requests, 1e-9),
                "bounds": BOUNDS, "cumulative": [count] * (len(BOUNDS) + 1),
            },
        }  # fmt: skip
        system = {"at": now, "memory": {"total": 4 * 2**30, "available": 2 * 2**30}}
        return [
            Message("telemetry/llm", msgspec.json.encode(llm), False),
            Message("telemetry/system", msgspec.json.encode(system), False),
        ]
