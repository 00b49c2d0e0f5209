"""A fleet in simulated time: devices, their broker and the decisions about one rollout, without a clock, a socket or a
database. The same seed gives the same story, and ten thousand devices take seconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from fleet.ingest import reading
from fleet.rollout.actions import Action, FreeSlot, Publish, TakeSlot, apply
from fleet.rollout.counters import Counters, Reading, accumulate
from fleet.rollout.decide import decide
from fleet.rollout.facts import DeviceFacts, Facts
from fleet.rollout.model import Bundle, Rollout
from fleet.rollout.operate import resume, retry, start
from fleet.rollout.plan import draft
from fleet.rollout.selector import Traits
from fleet.rollout.spec import read_spec
from fleet.rollout.states import ENDED, RolloutState
from fleet.store.devices import as_report
from fleet.store.rollouts import write_desired
from tests.fleet.simulate.device import Behaviour, Message, SimulatedDevice, digest_of

BEGIN = 1_800_000_000.0
DAY = 86400.0


@dataclass(frozen=True)
class Weather:
    """What happens to devices: ``outages_per_day`` of each, of ``outage_seconds`` in the mean; a source that is away up
    to ``source_fails`` times; clocks that are wrong by up to ``clocks`` seconds and ``drift`` parts of a million.
    """

    outages_per_day: float = 0.0
    outage_seconds: float = 600.0
    source_fails: int = 0
    clocks: float = 0.0
    drift: float = 0.0


CALM = Weather()


@dataclass(eq=False)
class FleetInTime:
    """``count`` devices at ``sites`` sites; a device takes ``pace`` seconds a phase and answers ``requests`` a second.

    ``telemetry`` seconds lie between two samples, ``interval`` between two decisions. ``asked`` are those that were
    sent the bundle of a rollout, in their order; ``failed_at``: when a device first reported an error; ``paused``: how
    often a person had to let it go on.
    """

    count: int
    seed: int = 0
    bundles: Mapping[str, Behaviour] = field(default_factory=dict)
    weather: Weather = CALM
    sites: int = 4
    pace: float = 20.0
    requests: float = 0.1
    telemetry: float = 60.0
    interval: float = 5.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.now = BEGIN
        self.devices = {each.name: each for each in (self._make(number) for number in range(self.count))}
        self.facts: dict[str, DeviceFacts] = {
            name: DeviceFacts(device=name, day_before=Counters()) for name in self.devices
        }
        self._readings: dict[str, Reading] = {}
        self._held: dict[str, bytes] = {}
        self.slots: dict[str, dict[str, float]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._due: dict[str, float] = {}
        self.rollout: Rollout | None = None
        self.asked: list[str] = []
        self.failed_at: float | None = None
        self.paused = 0
        self.look: Callable[[Rollout], None] = lambda rollout: None
        for name in self.devices:
            self._connect(name)
            self._at(self._random.uniform(0, self.telemetry), lambda name=name: self._sample(name))  # type: ignore[misc]

    def _make(self, number: int) -> SimulatedDevice:
        weather, numbers = self.weather, self._random
        return SimulatedDevice(
            f"sim-{number}", pace=self.pace, requests_per_second=self.requests, bundles=self.bundles,
            source_fails=numbers.randint(0, weather.source_fails),
            clock_offset=numbers.uniform(-1, 1) * weather.clocks,
            clock_rate=1 + numbers.uniform(-1, 1) * weather.drift / 1e6,
        )  # fmt: skip

    # Time.
    def _at(self, seconds: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, what))

    def pass_time(self, seconds: float) -> None:
        """Everything happens that is due; decisions are made at their interval."""
        self._at(seconds, lambda: None)
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, what = heapq.heappop(self._events)
            what()

    # Devices.
    def _connect(self, name: str) -> None:
        self.facts[name] = structs.replace(self.facts[name], online=True)
        self._hear(name, self.devices[name].birth(self.now))
        if name in self._held:
            self._wish(name, self._held[name])
        self._wake(name)
        if rate := self.weather.outages_per_day / DAY:
            self._at(self._random.expovariate(rate), lambda: self._disconnect(name))

    def _disconnect(self, name: str) -> None:
        """Its line is cut; the device goes on, and says so once it is back."""
        self._hear(name, [self.devices[name].will()])
        self._at(self._random.expovariate(1 / self.weather.outage_seconds), lambda: self._connect(name))

    def cut(self, name: str) -> None:
        """Its line is cut for good."""
        self._hear(name, [self.devices[name].will()])

    def _wake(self, name: str) -> None:
        """See to it that the device does what it does by itself, when it does."""
        due = self.devices[name].due
        if due is not None and self._due.get(name) != due:
            self._due[name] = due
            self._at(max(0.0, due - self.now), lambda: self._tick(name))

    def _tick(self, name: str) -> None:
        said = self.devices[name].tick(self.now)
        if self.facts[name].online:
            self._hear(name, said)
        self._wake(name)

    def _sample(self, name: str) -> None:
        if self.facts[name].online:
            self._hear(name, self.devices[name].telemetry(self.now))
        self._at(self.telemetry, lambda: self._sample(name))

    def _wish(self, name: str, payload: bytes) -> None:
        self._hear(name, self.devices[name].wish(payload, self.now))
        self._wake(name)

    # What the fleet hears, by its own readers.
    def _hear(self, name: str, messages: list[Message]) -> None:
        changes: dict[str, Any] = {}
        for message in messages:
            if message.topic == "status":
                changes["online"] = reading.read_status(message.payload).online
            elif message.topic == "health":
                changes["ready"] = reading.read_health(message.payload).ready
            elif message.topic == "reported":
                report = as_report(reading.read_reported(message.payload))
                changes["report"] = report
                if report.error and not report.retries and self.failed_at is None:
                    self.failed_at = self.now
            elif message.topic == "telemetry/llm":
                changes |= self._count(name, reading.read_llm(message.payload))
            elif message.topic == "telemetry/system":
                changes["memory_available"] = reading.read_system(message.payload).memory_available
        if changes.get("online", True):
            changes["seen_at"] = self.now
        self.facts[name] = structs.replace(self.facts[name], **changes)

    def _count(self, name: str, found: Reading) -> dict[str, Any]:
        total = self.facts[name].counters or Counters()
        after, known = accumulate(total, self._readings.get(name), found)
        self._readings[name] = found
        assert known, "an honest device's counters do not fall"
        return {"counters": after, "heard_at": self.now}

    # The rollout.
    def start(self, version: str, **changes: Any) -> Rollout:
        """Begin a rollout of ``model@version``."""
        spec = read_spec({"bundle": f"model@{version}", "where": "*", **changes})
        traits = [
            Traits(device=name, site=f"site-{number % self.sites}", hardware=("x86", "arm")[number % 2])
            for number, name in enumerate(self.devices)
        ]
        bundle = Bundle("model", version, digest_of(f"model@{version}"))
        made = draft(spec, traits, number=1, bundle=bundle, by="ann", now=self.now)
        self.asked, self.failed_at = [], None
        self.rollout = made
        self._carry_out(start(made, self.now))
        self._at(0.0, self._decide)
        return made

    def _decide(self) -> None:
        assert self.rollout is not None
        for _ in range(20):
            actions = decide(self.rollout, Facts(self.facts, self.slots), self.now)
            if not actions:
                break
            self._carry_out(actions)
        else:
            raise AssertionError("it never comes to rest")
        if self.rollout.state not in ENDED:
            self._at(self.interval, self._decide)

    def _carry_out(self, actions: list[Action]) -> None:
        assert self.rollout is not None
        self.rollout = apply(self.rollout, actions)
        for action in actions:
            match action:
                case Publish():
                    self._publish(action)
                case TakeSlot(site, device, expires):
                    self.slots.setdefault(site, {})[device] = expires
                case FreeSlot(site, device):
                    self.slots[site].pop(device, None)
        self.look(self.rollout)

    def _publish(self, wish: Publish) -> None:
        assert self.rollout is not None
        device, revision, bundle = wish.device, wish.revision, wish.bundle
        if bundle is not None and bundle.reference == self.rollout.bundle.reference:
            self.asked.append(device)
        payload = write_desired(wish)
        self._held[device] = payload
        self.facts[device] = structs.replace(self.facts[device], desired=revision if payload else "")
        if self.facts[device].online:
            # A broker takes a moment.
            self._at(self._random.uniform(0.01, 0.5), lambda: self._deliver(device, payload))

    def _deliver(self, device: str, payload: bytes) -> None:
        if self.facts[device].online and self._held[device] == payload:
            self._wish(device, payload)

    def retry(self) -> None:
        """A person has those asked again that failed."""
        assert self.rollout is not None
        self._carry_out(retry(self.rollout, "bob", self.now))

    def run(self, days: float = 8.0) -> Rollout:
        """Until the rollout has ended, or so many days have passed; whenever it is paused, a person lets it go on."""
        end = self.now + days * DAY
        assert self.rollout is not None
        while self.now < end and self.rollout.state not in ENDED:
            self.pass_time(600.0)
            if self.rollout.state is RolloutState.PAUSED:
                self.paused += 1
                self._carry_out(resume(self.rollout, "bob", self.now))
        return self.rollout
