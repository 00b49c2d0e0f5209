"""The quality canary: idle boxes are judged by fixed prompts, before and after, and too little of it pauses."""

from __future__ import annotations

import pytest

from fleet.rollout.canary import Canary, Prompt, Quality, Score
from fleet.rollout.counters import Counters
from fleet.rollout.gates import Evidence, Outcome, judge
from fleet.rollout.plan import describe
from fleet.rollout.spec import Gates
from fleet.rollout.states import RolloutState, TargetState, WaveState
from tests.fleet.rollout.world import World, work

S, T, W = RolloutState, TargetState, WaveState
CANARY = Canary((Prompt("Which city is Norway's capital?", ("Oslo",)), Prompt("2 + 2?", ("4", "four"))))


def idle_world() -> World:
    """Nobody asks these devices anything."""
    world = World(canary=CANARY)
    for name in world.devices:
        world.set(name, counters=Counters(), day_before=Counters())
    return world.begin()


def install(world: World) -> None:
    """The first wave has the bundle."""
    world.decide()
    world.probe()
    world.decide(1)
    world.obey_all()


def test_a_prompt_is_met_by_one_of_its_texts() -> None:
    assert CANARY.prompts[0].is_met("It is OSLO, I think.")
    assert CANARY.prompts[1].is_met("Four.")
    assert not CANARY.prompts[1].is_met("It is five")
    assert CANARY.requests(20) == 20
    assert Canary(CANARY.prompts * 7).requests(20) == 28


def test_an_idle_box_is_asked_before_and_after_and_passes_every_gate_by_it() -> None:
    world = idle_world()
    world.decide()
    (canary,) = world.wave(1)
    assert (world.state(canary), world.rollout.targets[canary].reason) == (T.DEFERRED, "canary")
    assert world.published == []
    assert world.probe() == [canary]
    assert world.probe() == []
    world.decide(1)
    assert world.state(canary) is T.ASKED
    world.obey_all()
    assert world.probe() == [canary]
    world.decide(world.spec.bake)
    assert world.rollout.waves[0].state is W.PASSED, world.rollout.reason
    assert world.rollout.targets[canary].baseline == work(20)


def test_a_bundle_that_is_as_fast_and_answers_wrongly_halts() -> None:
    world = idle_world()
    install(world)
    world.probe(right=10)
    world.decide(world.spec.bake)
    assert world.rollout.state is S.ROLLING_BACK
    assert "quality canary: 50 % of the answers as expected, 90 % at least" in world.rollout.reason


def test_without_answers_it_waits_and_then_pauses_and_never_passes() -> None:
    world = idle_world()
    install(world)
    world.decide(world.spec.bake)
    assert world.rollout.waves[0].state is W.BAKING
    assert world.probe(answered=3, right=3) == world.wave(1)
    world.decide(world.spec.patience - 10)
    assert world.rollout.waves[0].state is W.BAKING
    world.decide(20)
    assert world.rollout.state is S.PAUSED
    assert "quality canary: 0 of 1 devices answered its prompts" in world.rollout.reason


def test_who_answered_too_little_is_asked_again() -> None:
    world = idle_world()
    install(world)
    assert world.probe(answered=3, right=3) == world.wave(1)
    world.decide(30)
    assert world.probe() == []
    world.decide(31)
    assert world.probe() == world.wave(1)
    world.decide(world.spec.bake)
    assert world.rollout.waves[0].state is W.PASSED


def test_nobody_waits_for_ever_for_what_was_before() -> None:
    world = idle_world()
    world.decide()
    world.decide(world.spec.patience)
    assert world.in_state(T.ASKED) == world.wave(1)


@pytest.mark.parametrize("changes", [{"ready": False}, {"report": None}])
def test_who_runs_nothing_that_answers_is_not_asked_before(changes: dict[str, object]) -> None:
    world = idle_world()
    world.set(world.wave(1)[0], **changes)
    world.decide()
    assert world.in_state(T.ASKED) == world.wave(1)


def test_a_plan_says_how_many_prompts_that_are() -> None:
    world = idle_world()
    assert [wave.prompts for wave in describe(world.rollout, {}, None)] == [40, 120, 160]


def one(before: tuple[int, int] | None, after: tuple[int, int] | None) -> Evidence:
    """Of one device: answered and expected, of ten."""
    scores = [None if each is None else Score(10, *each, 0.0) for each in (before, after)]
    return Evidence("box", work(100), work(100), heard=True, ready=True, memory_available=0.5, quality=Quality(*scores))


@pytest.mark.parametrize(
    ("evidence", "outcome"),
    [
        ([one((10, 10), (10, 9))], Outcome.PASSED),
        ([one((10, 10), (10, 8))], Outcome.FAILED),
        # What was half right before may be half right.
        ([one((10, 5), (10, 5))], Outcome.PASSED),
        # Where nothing was right before, or nothing ran, all of it counts.
        ([one((10, 0), (10, 0))], Outcome.FAILED),
        ([one(None, (10, 8))], Outcome.FAILED),
        ([one(None, (10, 9))], Outcome.PASSED),
        # Too few answers, or too few devices.
        ([one((10, 10), (8, 8))], Outcome.INCONCLUSIVE),
        ([one((10, 10), None)], Outcome.INCONCLUSIVE),
        ([one((10, 10), (10, 10)), one((10, 10), None), one((10, 10), None)], Outcome.INCONCLUSIVE),
        ([one((10, 10), (10, 10)), one((10, 10), None)], Outcome.PASSED),
    ],
)
def test_the_gate(evidence: list[Evidence], outcome: Outcome) -> None:
    assert judge(Gates(), evidence, []).outcome is outcome
