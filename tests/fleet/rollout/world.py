"""Devices and a clock for tests of decisions: facts are set by hand, and time passes when a test says so."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from fleet.rollout.actions import Action, FreeSlot, Publish, TakeSlot, apply
from fleet.rollout.canary import SAMPLE_SECONDS, Score
from fleet.rollout.counters import Counters
from fleet.rollout.decide import decide
from fleet.rollout.facts import DeviceFacts, Facts, Newcomer, Report
from fleet.rollout.model import Bundle
from fleet.rollout.operate import start
from fleet.rollout.plan import draft
from fleet.rollout.probing import due
from fleet.rollout.selector import Traits
from fleet.rollout.spec import Gates, Spec
from fleet.rollout.states import TargetState
from fleet.rollout.waves import Size

OLD = Bundle("model", "1.0.0", "0" * 64)
NEW = Bundle("model", "2.0.0", "2" * 64)
BEGIN = 1_000_000.0

BOUNDS = (0.1, 0.5, 1.0, 5.0)


def work(requests: int, *, errors: int = 0, crashes: int = 0, per_second: float = 10.0, slow: int = 0) -> Counters:
    """Counters after ``requests``, of which ``slow`` had their first token within a second, the others in a tenth."""
    fast = requests - slow
    return Counters(
        requests, errors, crashes, 0, requests, requests / per_second, BOUNDS, (fast, fast, requests, requests)
    )


SPEC = Spec(
    name=NEW.name,
    version=NEW.version,
    where="*",
    waves=(Size(1), Size(percent=50), Size(percent=100)),
    bake=600.0,
    deadline=3600.0,
    patience=1800.0,
    offline=86400.0,
    expires=10 * 86400.0,
    gates=Gates(memory=None),
)


class World:
    """One rollout over ``count`` devices; ``wishes`` are the last documents that were published."""

    def __init__(self, count: int = 8, *, sites: int = 2, **changes: Any) -> None:
        self.now = BEGIN
        self.spec = structs.replace(SPEC, **changes)
        names = [f"box-{number}" for number in range(count)]
        traits = [Traits(device=name, site=f"site-{number % sites}") for number, name in enumerate(names)]
        self.rollout = draft(self.spec, traits, number=1, bundle=NEW, by="ann", now=self.now)
        self.devices = {name: self.fresh(name) for name in names}
        self.slots: dict[str, dict[str, float]] = {}
        self.newcomers: tuple[Newcomer, ...] = ()
        self.scores: dict[str, dict[int, Score]] = {}
        self.wishes: dict[str, Publish] = {}
        self.published: list[Publish] = []

    def fresh(self, name: str, **changes: Any) -> DeviceFacts:
        found = DeviceFacts(
            device=name,
            online=True,
            seen_at=self.now,
            heard_at=self.now,
            ready=True,
            report=Report(revision="before", phase="IDLE", active=OLD),
            day_before=Counters(),
            counters=work(1000),
        )
        return structs.replace(found, **changes)

    @property
    def facts(self) -> Facts:
        return Facts(self.devices, self.slots, self.newcomers, self.scores)

    def begin(self) -> World:
        self.take(start(self.rollout, self.now))
        return self

    def take(self, actions: list[Action]) -> list[Action]:
        self.rollout = apply(self.rollout, actions)
        for action in actions:
            match action:
                case Publish(device):
                    self.wishes[device] = action
                    self.published.append(action)
                case TakeSlot(site, device, expires):
                    self.slots.setdefault(site, {})[device] = expires
                case FreeSlot(site, device):
                    del self.slots[site][device]
        return actions

    def decide(self, seconds: float = 0.0) -> list[Action]:
        """Let time pass, decide, and see that deciding again at once changes nothing more in the end."""
        self.now += seconds
        found: list[Action] = []
        for _ in range(20):
            actions = self.take(decide(self.rollout, self.facts, self.now))
            found += actions
            if not actions:
                return found
        raise AssertionError("it never comes to rest")

    def set(self, name: str, **changes: Any) -> None:
        self.devices[name] = structs.replace(self.devices[name], **changes)

    def report(self, name: str, phase: str = "IDLE", **changes: Any) -> None:
        """The device says something about the wish that it has."""
        wish = self.wishes[name]
        active = changes.pop("active", self.devices[name].active)
        report = Report(revision=wish.revision, phase=phase, active=active, **changes)
        self.set(name, report=report, seen_at=self.now, desired=wish.revision)

    def obey(self, name: str) -> None:
        """The device has done what it was asked for."""
        self.report(name, active=self.wishes[name].bundle or self.devices[name].active)

    def fail(self, name: str, reason: str = "canary_drift") -> None:
        self.report(name, error=reason, message="the canary moved")

    def serve(self, *names: str, **values: Any) -> None:
        """Requests are answered since; ``values`` as for :func:`work`."""
        for name in names or list(self.devices):
            before = self.devices[name].counters
            assert before is not None
            self.set(name, counters=before.plus(work(100, **values)), heard_at=self.now, seen_at=self.now)

    def probe(self, *, right: int | None = None, answered: int | None = None) -> list[str]:
        """Whoever is due answers the canary, ``right`` of its prompts as expected, and counts it; who that was."""
        asked = []
        for each in due(self.rollout, self.facts, self.now):
            told = each.requests if answered is None else answered
            score = Score(each.requests, told, told if right is None else right, self.now)
            self.scores.setdefault(each.device, {})[each.attempt] = score
            before = self.devices[each.device].counters
            assert before is not None
            self.set(
                each.device,
                counters=before.plus(work(told)),
                heard_at=self.now + SAMPLE_SECONDS + 1,
                seen_at=self.now + 1,
            )
            asked.append(each.device)
        return asked

    def in_state(self, state: TargetState) -> list[str]:
        return [target.device for target in self.rollout.targets.values() if target.state is state]

    def wave(self, number: int) -> list[str]:
        return [target.device for target in self.rollout.wave_targets(number)]

    def state(self, name: str) -> TargetState:
        return self.rollout.targets[name].state

    def obey_all(self) -> None:
        """Everybody who was asked does it, and answers requests."""
        for name in self.in_state(TargetState.ASKED):
            self.obey(name)
        self.decide(1)

    def bake(self, **values: Any) -> None:
        """A wave's time passes, with requests answered in it."""
        self.now += self.spec.bake
        self.serve(**values)
        self.decide()
