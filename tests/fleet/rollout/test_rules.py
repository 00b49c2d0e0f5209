"""The rules that hold whatever happens: devices and operators do anything, and rollouts come over one another."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from contract.errors import RequestInvalid
from fleet.rollout import operate
from fleet.rollout.actions import Action, FreeSlot, Publish, TakeSlot, apply
from fleet.rollout.canary import SAMPLE_SECONDS, Canary, Prompt, Score, score_of
from fleet.rollout.counters import Counters
from fleet.rollout.decide import decide
from fleet.rollout.facts import DeviceFacts, Facts, Report
from fleet.rollout.model import Rollout
from fleet.rollout.plan import draft
from fleet.rollout.probing import due
from fleet.rollout.selector import Traits
from fleet.rollout.spec import Gates, Halt
from fleet.rollout.states import ENDED, IN_PROGRESS, LIVE, RolloutState, TargetState, WaveState
from fleet.rollout.waves import Size
from tests.fleet.rollout.world import BEGIN, NEW, OLD, SPEC, work

NAMES = [f"box-{number}" for number in range(9)]
MIN_REQUESTS = 20
CANARY = Canary((Prompt("2 + 2?", ("4",)),))
HALTS = (RolloutState.HALTED, RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK)
PHASES = ["RESOLVE", "FETCH", "VERIFY", "SEAL", "CANARY", "SWITCH", "PROBATION", "COMMIT", "ROLLBACK", "IDLE"]

names = st.sampled_from(NAMES)


class Fleet(RuleBasedStateMachine):
    """Nine devices of three sites, rollouts one after another, and everybody as unreliable as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.devices = {
            name: DeviceFacts(
                device=name, online=True, seen_at=BEGIN, heard_at=BEGIN, ready=True, counters=work(500),
                day_before=Counters(), report=Report(revision="before", phase="IDLE", active=OLD),
            )
            for name in NAMES
        }  # fmt: skip
        self.rollouts: dict[int, Rollout] = {}
        self.slots: dict[str, dict[str, float]] = {}
        self.wishes: dict[str, Publish] = {}
        self.scores: dict[int, dict[str, dict[int, Score]]] = {}
        self.served: dict[str, int] = dict.fromkeys(NAMES, 0)
        """Requests of each device since its bundle last became active: the machine's own book."""

    # Rollouts and those who operate them.
    @rule(
        waves=st.sampled_from(
            [(Size(1), Size(4), Size(percent=100)), (Size(percent=100),), (Size(2), Size(percent=50))]
        ),
        rollback=st.sampled_from(["none", "wave", "all"]),
        most=st.integers(1, 4),
        slots=st.integers(0, 2),
        holdout=st.integers(0, 2),
        failures=st.integers(1, 4),
        where=st.sampled_from(["*", "site=s0", "site in (s1, s2)"]),
        canary=st.sampled_from([None, CANARY]),
    )
    def begin(self, **changes: Any) -> None:
        if len(self.rollouts) >= 3:
            return
        number = len(self.rollouts) + 1
        spec = structs.replace(
            SPEC,
            waves=changes["waves"], rollback=changes["rollback"], max_in_progress=changes["most"],
            slots_per_site=changes["slots"], holdout=Size(changes["holdout"]), where=changes["where"],
            canary=changes["canary"], halt=Halt(changes["failures"], 50.0, 4),
            gates=Gates(memory=None, min_requests=MIN_REQUESTS),
        )  # fmt: skip
        traits = [Traits(device=name, site=f"s{index % 3}") for index, name in enumerate(NAMES)]
        rollout = draft(spec, traits, number=number, bundle=NEW, by="ann", now=self.now)
        taken = frozenset(name for name, target in rollout.targets.items() if target.open)
        for older in list(self.rollouts.values()):
            if older.state in LIVE:
                self.carry_out(older, operate.supersede(older, taken, number, self.now))
        self.rollouts[number] = rollout
        self.carry_out(rollout, operate.start(rollout, self.now))

    @precondition(lambda self: self.rollouts)
    @rule(which=st.integers(1, 3), what=st.sampled_from(["pause", "resume", "accept", "abort", "retry"]))
    def operate(self, which: int, what: str) -> None:
        rollout = self.rollouts.get(which)
        if rollout is None:
            return
        try:
            if what == "accept":
                actions = operate.resume(rollout, "bob", self.now, accept="because")
            else:
                actions = getattr(operate, what)(rollout, "bob", self.now)
        except RequestInvalid:
            return
        self.carry_out(rollout, actions)

    # Devices.
    @rule(name=names, online=st.booleans())
    def come_or_go(self, name: str, online: bool) -> None:
        seen = self.now if online else self.devices[name].seen_at
        self.devices[name] = structs.replace(self.devices[name], online=online, seen_at=seen)

    @rule(name=names, phase=st.sampled_from(PHASES), error=st.sampled_from(["", "canary_drift"]), retries=st.booleans())
    def report(self, name: str, phase: str, error: str, retries: bool) -> None:
        wish = self.wishes.get(name)
        if wish is None or not self.devices[name].online:
            return
        active = wish.bundle if phase in ("IDLE", "PROBATION", "COMMIT") and not error else self.devices[name].active
        report = Report(wish.revision, phase, active or self.devices[name].active, None, error, "", retries)
        self.devices[name] = structs.replace(self.devices[name], report=report, seen_at=self.now, desired=wish.revision)

    @rule(name=names, ok=st.booleans())
    def obey(self, name: str, ok: bool) -> None:
        self.report(name, "IDLE", "" if ok else "canary_drift", False)

    @rule(name=names, requests=st.sampled_from([1, 19, 20, 50]), crashes=st.sampled_from([0, 0, 0, 1]))
    def serve(self, name: str, requests: int, crashes: int) -> None:
        counters = self.devices[name].counters
        if not self.devices[name].online or counters is None:
            return
        total = counters.plus(work(requests, crashes=crashes))
        self.served[name] += requests
        self.devices[name] = structs.replace(
            self.devices[name], counters=total, heard_at=self.now, seen_at=self.now, ready=True
        )

    @precondition(lambda self: self.rollouts)
    @rule(which=st.integers(1, 3), answered=st.sampled_from([0, 17, 18, 20]), right=st.sampled_from([0, 17, 20]))
    def answer_canary(self, which: int, answered: int, right: int) -> None:
        """Whoever is due answers, and counts it."""
        rollout = self.rollouts.get(which)
        if rollout is None:
            return
        scores = self.scores.setdefault(which, {})
        for each in due(rollout, Facts(self.devices, self.slots, scores=scores), self.now):
            score = Score(each.requests, answered, min(right, answered), self.now)
            scores.setdefault(each.device, {})[each.attempt] = score
            counters = self.devices[each.device].counters
            assert counters is not None
            self.served[each.device] += answered
            total, heard = counters.plus(work(answered)), self.now + SAMPLE_SECONDS + 1
            self.devices[each.device] = structs.replace(
                self.devices[each.device], counters=total, heard_at=heard, seen_at=heard
            )

    @rule(name=names, revision=st.sampled_from(["", "somebody-else", "ro9.w1.a1"]))
    def somebody_else_wishes(self, name: str, revision: str) -> None:
        self.devices[name] = structs.replace(self.devices[name], desired=revision)

    @rule(name=names, pinned=st.booleans(), reliable=st.booleans(), ready=st.sampled_from([None, True, False]))
    def change(self, name: str, pinned: bool, reliable: bool, ready: bool | None) -> None:
        self.devices[name] = structs.replace(self.devices[name], pinned=pinned, reliable=reliable, ready=ready)

    # Time.
    @rule(seconds=st.sampled_from([0.0, 1.0, 60.0, 600.0, 1800.0, 3600.0, 86400.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.decide()

    def decide(self) -> None:
        for number in list(self.rollouts):
            for _ in range(12):
                rollout = self.rollouts[number]
                scores = self.scores.get(number, {})
                actions = decide(rollout, Facts(self.devices, self.slots, scores=scores), self.now)
                if not actions:
                    break
                after = self.carry_out(rollout, actions)
                self.look_at_passes(rollout, after)
                if rollout.state in HALTS:
                    assert not any(isinstance(each, Publish) and each.bundle == NEW for each in actions), "outvoted"
            else:
                raise AssertionError(f"rollout {number} never comes to rest")

    def carry_out(self, rollout: Rollout, actions: list[Action]) -> Rollout:
        after = apply(rollout, actions)
        self.rollouts[rollout.id] = after
        for action in actions:
            match action:
                case Publish(device):
                    self.wishes[device] = action
                case TakeSlot(site, device, expires):
                    self.slots.setdefault(site, {})[device] = expires
                    held = [when for when in self.slots[site].values() if when > self.now]
                    assert len(held) <= rollout.spec.slots_per_site
                case FreeSlot(site, device):
                    self.slots[site].pop(device, None)
        for name, target in after.targets.items():
            if target.state is TargetState.ACTIVE and rollout.targets[name].state is not TargetState.ACTIVE:
                self.served[name] = 0
        return after

    def look_at_passes(self, before: Rollout, after: Rollout) -> None:
        """A wave that has just passed did so on enough data of enough devices."""
        for was, now in zip(before.waves, after.waves, strict=False):
            if now.state is not WaveState.PASSED or was.state is WaveState.PASSED or "already" in now.verdict:
                continue
            judged = [
                name
                for name, target in after.targets.items()
                if target.state is TargetState.BAKED and before.targets[name].state is TargetState.ACTIVE
            ]
            enough = [name for name in judged if self.served[name] >= MIN_REQUESTS]
            assert judged, "passed on nobody"
            assert 2 * len(enough) >= len(judged), "passed on too little data"
            if after.spec.canary is not None:
                scores = [score_of(self.scores.get(after.id, {}), each, after.targets[each].attempt) for each in judged]
                known = [each for each in scores if each is not None and each.is_enough]
                assert 2 * len(known) >= len(judged), "passed on too few answers to the canary"

    # What holds.
    @invariant()
    def never_more_in_progress_than_allowed(self) -> None:
        for rollout in self.rollouts.values():
            count = sum(target.state in IN_PROGRESS for target in rollout.targets.values())
            assert count <= rollout.spec.max_in_progress

    @invariant()
    def nobody_is_the_open_target_of_two_rollouts(self) -> None:
        for name in NAMES:
            holders = [
                rollout.id
                for rollout in self.rollouts.values()
                if rollout.state in LIVE and name in rollout.targets and rollout.targets[name].open
            ]
            assert len(holders) <= 1

    @invariant()
    def what_has_ended_has_no_open_target(self) -> None:
        for rollout in self.rollouts.values():
            if rollout.state in ENDED:
                assert not any(target.open for target in rollout.targets.values())

    @invariant()
    def the_control_group_is_never_asked(self) -> None:
        for rollout in self.rollouts.values():
            assert not any(target.attempt for target in rollout.targets.values() if target.wave == 0)

    def teardown(self) -> None:
        """Every path ends, also where nobody says anything more."""
        for _ in range(4):
            self.now += SPEC.expires + SPEC.deadline
            self.decide()
        for rollout in self.rollouts.values():
            assert rollout.state in ENDED, rollout.state


TestFleet = Fleet.TestCase
TestFleet.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
