"""One simulated device: what it does about a wish, phase by phase, and what it counts. Pure: the clock is handed in.

It goes by the state table of the real agent, and says what an agent says, in its order (``test_conformance``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from msgspec import UNSET

from agent.install.desired import Activates, activates_of
from agent.install.update.gate import LOOK_SECONDS, waits
from agent.install.update.state_machine import Event as Step
from agent.install.update.state_machine import State, step
from contract.mqtt.desired import BundleReference
from contract.mqtt.device import EngineInfo, Event, Health, Info, Limits, Status
from contract.mqtt.encoding import encode
from contract.mqtt.faults import ReportedError
from contract.mqtt.reading import parse_desired
from contract.mqtt.reports import BundleState, Phase, Reported, Waiting
from contract.reasons import Reason
from contract.trust.clock import EARLIEST
from contract.utc import parse_utc
from tests.fleet.simulate.work import RAM_BYTES, Work, answer, system

FIRST = "model@1.0.0"

_AHEAD = {
    State.RESOLVE: Step.RESOLVED,
    State.CHECK: Step.CHECKED,
    State.RESERVE: Step.RESERVED,
    State.FETCH: Step.FETCHED,
    State.VERIFY: Step.VERIFIED,
    State.SEAL: Step.SEALED,
    State.CANARY: Step.CANARY_PASSED,
    State.SWITCH: Step.SWITCHED,
    State.PROBATION: Step.HELD,
    State.COMMIT: Step.COMMITTED,
    State.ROLLBACK: Step.RESTORED,
}
"""What ends each phase where all is well."""

_ON_TRIAL = (State.CANARY, State.SWITCH, State.PROBATION)
"""A bundle that fails here is quarantined; before, it is refused."""


@dataclass(frozen=True)
class Behaviour:
    """What a bundle does on every device: ``fails`` in a phase with a reason, is ``speed`` times as fast, fails a share
    ``errors`` of its requests, crashes, answers ``says`` whatever it is asked, or is ``mute``.
    """

    fails: Phase | None = None
    reason: str = Reason.CANARY_DRIFT
    speed: float = 1.0
    errors: float = 0.0
    crashes_per_hour: float = 0.0
    says: str = "It is what was expected."
    mute: bool = False


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
    """``pace``: seconds a phase takes; ``bundles``: how those behave that do not behave well; ``active``: "" for a
    device that runs nothing yet; ``source_fails``: how often its source is away before a download comes through.
    ``clock_offset`` and ``clock_rate``: how its own clock goes, which stands in what it says.
    """

    name: str
    pace: float = 0.05
    requests_per_second: float = 200.0
    bundles: Mapping[str, Behaviour] = field(default_factory=dict)
    active: str = FIRST
    previous: str | None = None
    boot: str = "boot-1"
    source_fails: int = 0
    clock_offset: float = 0.0
    clock_rate: float = 1.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.name)
        self.wishes: list[str] = []
        """Revisions that were followed, in their order."""
        self.installed: list[str] = []
        self.work = Work(self.requests_per_second)
        self._sealed = {self.active}
        self._quarantined: dict[str, str] = {}
        self._serving = self.active
        self._revision: str | None = None
        self._desired: str | None = None
        self._activates = Activates()
        self._waiting: Waiting | None = None
        self._error: ReportedError | None = None
        self._state = State.IDLE
        self._next: float | None = None
        self._begun = False

    @property
    def due(self) -> float | None:
        """When it does something by itself."""
        return self._next

    def clock(self, now: float) -> float:
        """What it takes ``now`` for."""
        return now * self.clock_rate + self.clock_offset

    # What it says.
    def birth(self, now: float) -> list[Message]:
        """What it says after each connect."""
        if not self._begun:
            self._begun = True
            self.work.begin_anew(self.clock(now))
        return [
            Message("status", encode(Status(True, self.boot)), True),
            self._report(),
            self._health(),
            Message("info", encode(self._info()), True),
        ]

    def restart(self, boot: str) -> None:
        """The process ended and is started again: what was under way begins anew with the broker's copy of the wish."""
        self.boot, self._begun = boot, False
        self._serving, self._state, self._next, self._waiting = self.active, State.IDLE, None, None
        if self._desired is not None and self._desired != self.active and self._error is None:
            self._revision = None

    def will(self) -> Message:
        return Message("status", encode(Status(False, self.boot)), True)

    def _health(self) -> Message:
        reasons = [] if self._serving else ["loading" if self._state is State.SWITCH else "no_model"]
        return Message("health", encode(Health(not reasons, reasons, 0, 0)), True)

    def _info(self) -> Info:
        number = int(self.name.rpartition("-")[2]) if self.name.rpartition("-")[2].isdigit() else 0
        host = {"arch": ("x86_64", "aarch64")[number % 2], "cores": 4, "ram_bytes": RAM_BYTES * (1, 2)[number % 3 == 0]}
        bundle, engine = None, None
        if self._serving:
            bundle = state_of(self._serving)
            engine = EngineInfo("simulated", "nothing is computed", 1, 2048, 32000, ["chat"], 0.1, "none")
        return Info(
            self.name, "edge/v1", ["simulated"], {"agent": "0.1.0"}, host, Limits(1, 1, 1, 1, 50, 1, 1), bundle, engine
        )

    def _report(self) -> Message:
        followed: Any = UNSET
        if self._desired is not None:
            followed = BundleReference(*self._desired.split("@"))
        reported = Reported(
            self._revision,
            self._state.value,
            None,
            state_of(self.active) if self.active else None,
            state_of(self.previous) if self.previous else None,
            self._error,
            desired=followed,
            waiting=self._waiting or UNSET,
        )
        return Message("reported", encode(reported), True)

    def _event(self, kind: str, at: float, **detail: Any) -> Message:
        when = datetime.fromtimestamp(self.clock(at), UTC).isoformat().replace("+00:00", "Z")
        return Message(f"event/{kind}", encode(Event(when, detail)), False)

    # What it does.
    def wish(self, payload: bytes, now: float) -> list[Message]:
        """The retained document came: the first time, or again after a connect, when it hurries nothing."""
        desired = parse_desired(payload)
        if desired is not None and desired.revision == self._revision:
            return []
        self._waiting = None
        if desired is None:
            self._revision = self._desired = self._error = None
            self._state, self._next, self._serving = State.IDLE, None, self.active
            return [self._report()]
        self._revision = desired.revision
        self._activates = activates_of(desired)
        self._desired = f"{desired.bundle.name}@{desired.bundle.version}"
        self.wishes.append(desired.revision)
        self._error = None
        self._serving = self.active
        if self._desired == self.active:
            self._state, self._next = State.IDLE, None
            return [self._report()]
        waiting = self._waits(now)
        if waiting is not None and not self._activates.prefetch:
            return self._hold(waiting, now)
        self._state, self._next = step(State.IDLE, Step.WANTED).state, now + self._pace()
        return [self._report()]

    def _waits(self, now: float) -> Waiting | None:
        """What it waits for before the bundle becomes active, by its own clock."""
        return waits(self._activates, self.clock(now), EARLIEST)

    def _hold(self, waiting: Waiting, now: float, *, prefetched: bool = False) -> list[Message]:
        """Wait in IDLE, and look again at the time, or when the clock may have been set."""
        until = waiting.until
        seconds = LOOK_SECONDS if until is UNSET else (parse_utc(until) - self.clock(now)) / self.clock_rate
        self._state, self._next = State.IDLE, now + min(LOOK_SECONDS, max(0.1, seconds))
        waiting = Waiting(waiting.reason, waiting.message, prefetched, waiting.until)
        if waiting == self._waiting:
            return []
        self._waiting = waiting
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
        if self._state is State.IDLE:
            if self._waiting is not None and (waiting := self._waits(at)) is not None:
                return self._hold(waiting, at, prefetched=self._waiting.prefetched)
            # The next attempt after a source that was away, or the time has come.
            self._waiting = None
            self._state, self._next, self._error = step(State.IDLE, Step.WANTED).state, at + self._pace(), None
            return [self._report()]
        behaviour = self.bundles.get(self._desired, Behaviour())
        if self._state is State.CHECK and self._desired in self._quarantined:
            return self._refuse(Reason.QUARANTINED, f"it failed here before: {self._quarantined[self._desired]}", at)
        if self._state is State.FETCH and self.source_fails > 0:
            self.source_fails -= 1
            return self._postpone(at)
        if self._state.value == behaviour.fails:
            message = f"the bundle failed in {behaviour.fails}"
            return self._fail(behaviour.reason, message, at) if self._state in _ON_TRIAL else self._refuse(
                behaviour.reason, message, at
            )  # fmt: skip
        return self._go_on(at)

    def _go_on(self, at: float) -> list[Message]:
        assert self._desired is not None
        was = self._state
        if was is State.SEAL:
            self._sealed.add(self._desired)
            if (waiting := self._waits(at)) is not None:
                assert step(was, Step.PREFETCHED).state is State.IDLE
                return self._hold(waiting, at, prefetched=True)
        present = was is State.CHECK and self._desired in self._sealed
        entry = step(was, Step.PRESENT if present else _AHEAD[was])
        self._state = entry.state
        self._next = None if entry.state is State.IDLE else at + self._pace()
        found: list[Message] = []
        if entry.state is State.SWITCH and not self._serving:
            return [self._report(), self._health()]
        if entry.state is State.PROBATION:
            self.count(at)
            before, self._serving = self._serving, self._desired
            detail = {"bundle": self._desired, "digest": digest_of(self._desired), "from": before or None}
            found += [] if before else [self._health()]
            found += [
                Message("info", encode(self._info()), True),
                self._event("swap", at, **detail, mode="overlap", queue_pause_ms=0.0),
            ]
        if entry.commits:
            self.previous, self.active = self.active or None, self._desired
            self.installed.append(self._desired)
            detail = {"bundle": self._desired, "digest": digest_of(self._desired), "security_epoch": 0}
            return [*found, self._report(), self._event("install", at, **detail)]
        return [*found, self._report()]

    def _refuse(self, reason: str, message: str, at: float) -> list[Message]:
        """Before it was tried: the device goes on as it is."""
        self._error = ReportedError(reason, message)
        self._state, self._next = step(self._state, Step.REFUSED).state, None
        detail = {"bundle": self._desired, "revision": self._revision, "reason": reason, "message": message}
        return [self._event("refused", at, **detail), self._report()]

    def _fail(self, reason: str, message: str, at: float) -> list[Message]:
        """On trial: it is quarantined, and what ran before goes on."""
        assert self._desired is not None
        self.count(at)
        was, before = self._serving, self.active
        self._serving, self._error = before, ReportedError(reason, message)
        self._quarantined[self._desired] = message
        self._state, self._next = step(self._state, Step.FAILED).state, at + self._pace()
        told = [] if was == before else [Message("info", encode(self._info()), True)]
        detail = {"from": self._desired, "to": before or None, "reason": reason, "message": message, "by": "automatic"}
        return [self._report(), *told, self._event("rollback", at, **detail)]

    def _postpone(self, at: float) -> list[Message]:
        wait = 2 * self.pace
        message = f"the source cannot be reached; retrying in {wait:.0f} s"
        self._error = ReportedError(Reason.SOURCE_UNAVAILABLE, message, retry_in_seconds=round(wait, 1))
        self._state, self._next = step(self._state, Step.UNAVAILABLE).state, at + wait
        return [self._report()]

    # What it counts and answers.
    def count(self, now: float) -> None:
        """Requests that were answered until ``now``, at the speed of the bundle that serves."""
        behaviour = self.bundles.get(self._serving, Behaviour())
        self.work.per_second = self.requests_per_second if self._serving else 0.0
        self.work.count(now, behaviour.speed, behaviour.errors, behaviour.crashes_per_hour)

    def telemetry(self, now: float) -> list[Message]:
        self.count(now)
        return [
            Message("telemetry/system", system(self.clock(now)), False),
            Message("telemetry/llm", self.work.llm(), False),
        ]

    def answer(self, payload: bytes) -> tuple[str, bytes]:
        """A request's id, and the last frame to it."""
        behaviour = self.bundles.get(self._serving, Behaviour())
        if not self._serving or behaviour.mute:
            return answer(payload, self._serving, None)
        self.work.answered(1, behaviour.speed)
        return answer(payload, self._serving, behaviour.says)
