"""What a rollout does next: waves, gates, halts, deferrals, and that it ends."""

from __future__ import annotations

import pytest
from msgspec import structs

from contract.windows import Window
from fleet.rollout.actions import Publish
from fleet.rollout.counters import Counters
from fleet.rollout.facts import Newcomer
from fleet.rollout.model import Bundle
from fleet.rollout.operate import abort, pause, resume, retry
from fleet.rollout.spec import Gates, Halt
from fleet.rollout.states import RolloutState, TargetState, TurnBack, WaveState
from fleet.rollout.waves import Size
from tests.fleet.rollout.world import BEGIN, NEW, OLD, World, work

S, T, W = RolloutState, TargetState, WaveState


def states(world: World) -> list[WaveState]:
    return [wave.state for wave in world.rollout.waves]


def test_a_good_bundle_goes_through_every_wave_and_is_done() -> None:
    world = World().begin()
    for number in (1, 2, 3):
        world.decide()
        assert world.in_state(T.ASKED) == world.wave(number)
        world.obey_all()
        assert world.rollout.waves[number - 1].state is W.BAKING
        world.bake()
    assert world.rollout.state is S.DONE
    assert world.rollout.reason == "8 baked"
    assert all(wish.bundle == NEW for wish in world.wishes.values())
    assert {wish.revision for wish in world.wishes.values()} == {"ro1.w1.a1", "ro1.w2.a1", "ro1.w3.a1"}


def test_nothing_is_asked_before_the_wave_before_has_passed() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.decide(world.spec.bake - 2)
    assert states(world) == [W.BAKING, W.PENDING, W.PENDING]
    assert len(world.published) == 1


def test_a_bad_bundle_halts_in_the_first_wave_and_is_turned_back() -> None:
    world = World().begin()
    world.decide()
    (canary,) = world.wave(1)
    world.fail(canary)
    world.decide(5)
    assert world.rollout.state is S.ROLLING_BACK
    assert "canary_drift" in world.rollout.reason
    assert world.wishes[canary] == Publish(canary, "ro1.w1.a1.back", OLD)
    world.obey(canary)
    world.decide(5)
    assert world.rollout.state is S.ROLLED_BACK
    assert world.state(canary) is T.ROLLED_BACK
    assert world.rollout.targets[canary].reason == "canary_drift"
    assert len(world.published) == 2
    assert {world.state(name) for name in world.devices if name != canary} == {T.SKIPPED}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"per_second": 5.0}, "tokens/s: 0.50 times what it was"),
        ({"errors": 30}, "error rate: +30.00 points"),
        ({"crashes": 1}, "worker crashes: 1 on 1 devices"),
        ({"slow": 40}, "p95 time to first token"),
    ],
)
def test_a_wave_that_does_not_hold_halts(values: dict[str, float], words: str) -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.bake(**values)
    assert world.rollout.state is S.ROLLING_BACK
    assert words in world.rollout.reason
    assert states(world) == [W.FAILED, W.PENDING, W.PENDING]
    (canary,) = world.wave(1)
    assert world.wishes[canary].bundle == OLD


def test_a_device_that_does_not_answer_halts_whatever_it_counts() -> None:
    world = World(gates=Gates(None, None, None, None, None, None)).begin()
    world.decide()
    world.obey_all()
    world.set(world.wave(1)[0], ready=False)
    world.bake()
    assert "1 of 1 do not answer prompts" in world.rollout.reason


def test_too_little_data_pauses_and_never_passes() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.decide(world.spec.bake)
    assert world.rollout.state is S.PAUSED
    assert states(world) == [W.INCONCLUSIVE, W.PENDING, W.PENDING]
    world.take(resume(world.rollout, "bob", world.now))
    assert states(world)[0] is W.BAKING
    world.bake()
    assert states(world) == [W.PASSED, W.OPEN, W.PENDING]


def test_counters_that_cannot_be_true_are_too_little_data() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.set(world.wave(1)[0], reliable=False)
    world.bake()
    assert states(world)[0] is W.INCONCLUSIVE


def test_a_person_may_accept_what_is_inconclusive_and_is_named() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.decide(world.spec.bake)
    world.take(resume(world.rollout, "bob", world.now, accept="nobody asks at night"))
    world.decide()
    assert world.rollout.waves[0].verdict == "accepted by bob: nobody asks at night"
    assert states(world) == [W.PASSED, W.OPEN, W.PENDING]


def test_what_slows_the_control_group_too_is_not_the_bundles_fault() -> None:
    world = World(20, holdout=Size(4)).begin()
    held = world.in_state(T.SKIPPED)
    assert len(held) == 4
    world.decide()
    world.obey_all()
    world.bake(per_second=5.0)
    assert states(world)[0] is W.PASSED
    assert not any(name in world.wishes for name in held)


def test_an_offline_device_blocks_nobody_is_no_success_and_catches_up() -> None:
    world = World().begin()
    away = world.wave(2)[0]
    world.set(away, online=False)
    for _ in (1, 2, 3):
        world.decide()
        world.obey_all()
        world.bake()
    assert states(world) == [W.PASSED] * 3
    assert world.rollout.state is S.RUNNING
    assert (world.state(away), world.rollout.targets[away].reason) == (T.DEFERRED, "offline")
    assert away not in world.wishes
    world.set(away, online=True, seen_at=world.now)
    world.decide()
    assert world.in_state(T.ASKED) == [away]
    world.obey_all()
    world.bake()
    assert world.rollout.state is S.DONE


def test_a_device_that_never_comes_is_skipped_and_the_rollout_ends() -> None:
    world = World().begin()
    away = world.wave(2)[0]
    world.set(away, online=False)
    for _ in (1, 2, 3):
        world.decide()
        world.obey_all()
        world.bake()
    world.decide(world.spec.offline)
    assert world.rollout.state is S.DONE
    assert (world.state(away), world.rollout.targets[away].reason) == (T.SKIPPED, "offline")


def test_a_wave_in_which_nobody_is_there_is_inconclusive_not_passed() -> None:
    world = World().begin()
    world.set(world.wave(1)[0], online=False)
    world.decide()
    world.decide(world.spec.patience)
    assert world.rollout.state is S.PAUSED
    assert "none of its 1 devices could be asked: offline (1)" in world.rollout.reason
    assert world.published == []


def test_a_device_that_went_away_before_it_heard_the_wish_is_not_a_failure() -> None:
    world = World(patience=86400.0).begin()
    world.decide()
    (canary,) = world.wave(1)
    world.set(canary, online=False)
    world.decide(world.spec.deadline)
    assert (world.state(canary), world.rollout.targets[canary].reason) == (T.DEFERRED, "offline")
    # The wish must not stand: it would be followed behind every gate's back.
    assert world.wishes[canary] == Publish(canary, "ro1.w1.a1.deferred", OLD)
    world.set(canary, online=True, seen_at=world.now)
    world.decide(1)
    assert world.wishes[canary].revision == "ro1.w1.a2"


def test_a_device_that_was_there_and_takes_too_long_has_failed() -> None:
    world = World().begin()
    world.decide()
    (canary,) = world.wave(1)
    world.now += 10
    world.report(canary, "FETCH")
    world.decide()
    assert world.state(canary) is T.INSTALLING
    world.decide(world.spec.deadline)
    assert world.rollout.state is S.ROLLING_BACK
    assert "timed_out (1)" in world.rollout.reason


def test_a_device_that_tries_again_by_itself_is_waited_for() -> None:
    world = World().begin()
    world.decide()
    (canary,) = world.wave(1)
    world.now += 1
    world.report(canary, error="source_unavailable", message="no route", retries=True)
    world.decide(5)
    assert world.state(canary) is T.ASKED
    assert world.rollout.targets[canary].reason == "source_unavailable"
    world.decide(world.spec.deadline)
    assert world.rollout.targets[canary].reason == "source_unavailable"
    assert world.rollout.state is S.ROLLING_BACK


def test_bounds_of_failures_halt_while_a_wave_is_open() -> None:
    world = World(40, waves=(Size(percent=100),), halt=Halt(max_failures=3)).begin()
    world.decide()
    one, two, three, *others = world.in_state(T.ASKED)
    for name in others[:30]:
        world.obey(name)
    world.fail(one)
    world.fail(two)
    world.decide(1)
    assert world.rollout.state is S.RUNNING
    world.fail(three)
    for name in others:
        world.obey(name)
    world.decide(1)
    assert world.rollout.state is S.ROLLING_BACK
    assert "3 of 40 devices failed, 3 are enough" in world.rollout.reason


def test_a_share_of_failures_halts_once_enough_were_executed() -> None:
    world = World(40, waves=(Size(percent=100),), halt=Halt(100, 10, 10)).begin()
    world.decide()
    names = world.in_state(T.ASKED)
    world.fail(names[0])
    for name in names[1:9]:
        world.obey(name)
    world.decide(1)
    assert world.rollout.state is S.RUNNING
    world.obey(names[9])
    world.decide(1)
    assert world.rollout.state is S.ROLLING_BACK


def test_never_more_in_progress_than_allowed() -> None:
    world = World(20, waves=(Size(percent=100),), max_in_progress=3).begin()
    asked: set[str] = set()
    for _ in range(20):
        world.decide(1)
        assert len(world.in_state(T.ASKED)) <= 3
        for name in world.in_state(T.ASKED):
            asked.add(name)
            world.obey(name)
    assert len(asked) == 20


def test_a_site_downloads_on_so_many_devices_at_a_time_until_they_have_it() -> None:
    world = World(8, waves=(Size(percent=100),), slots_per_site=1).begin()
    world.decide()
    assert len(world.in_state(T.ASKED)) == 2
    assert {len(holders) for holders in world.slots.values()} == {1}
    first, _ = world.in_state(T.ASKED)
    assert {world.rollout.targets[name].reason for name in world.in_state(T.DEFERRED)} == {"slot"}
    world.report(first, "FETCH")
    world.decide(1)
    assert len(world.in_state(T.ASKED)) == 1
    world.report(first, "CANARY")
    world.decide(1)
    assert len(world.in_state(T.ASKED)) == 2


def test_a_slot_expires_so_that_a_stuck_device_blocks_nobody() -> None:
    world = World(8, sites=1, waves=(Size(percent=100),), slots_per_site=1, slot_expires=600.0).begin()
    world.decide()
    world.decide(599)
    assert len(world.in_state(T.ASKED)) == 1
    world.decide(1)
    assert len(world.in_state(T.ASKED)) == 2


def test_outside_its_window_nobody_is_asked() -> None:
    # 1,000,000 s is 1970-01-12 13:46:40 UTC.
    world = World(windows=(Window(14 * 60, 15 * 60, "UTC"),)).begin()
    world.decide()
    assert {world.rollout.targets[name].reason for name in world.wave(1)} == {"window"}
    assert world.published == []
    world.decide(14 * 60)
    assert len(world.published) == 1


def prefetching(**changes: object) -> World:
    """The window opens 13 minutes and 20 seconds after the beginning, for an hour."""
    return World(windows=(Window(14 * 60, 15 * 60, "UTC"),), prefetch=True, **changes).begin()


def test_with_prefetch_devices_are_asked_before_their_window_which_they_are_told() -> None:
    world = prefetching()
    world.decide()
    (canary,) = world.wave(1)
    assert world.wishes[canary].windows == world.spec.windows
    assert world.rollout.targets[canary].deadline == BEGIN + 800 + world.spec.deadline, "its time runs from the opening"


def test_a_device_that_waits_for_its_window_has_not_failed_and_gives_its_slot_back() -> None:
    world = prefetching(slots_per_site=1, deadline=600.0)
    world.decide()
    (canary,) = world.wave(1)
    assert [list(each) for each in world.slots.values()] == [[canary]]
    world.report(canary, "FETCH")
    world.decide(60)
    assert [list(each) for each in world.slots.values()] == [[canary]], "it downloads"
    world.report(canary, waiting="waiting_for_window", prefetched=True, message="it opens at 14:00")
    world.decide(600)
    target = world.rollout.targets[canary]
    assert not any(world.slots.values())
    assert (target.state, target.reason, target.message) == (
        T.INSTALLING, "waiting_for_window", "it opens at 14:00",
    )  # fmt: skip


def test_devices_that_have_fetched_and_wait_are_in_progress_so_that_no_more_change_at_once_when_the_window_opens() -> (
    None
):
    world = prefetching(count=20, waves=(Size(percent=100),), max_in_progress=3)
    for _ in range(3):
        world.decide(60)
        for name in world.in_state(T.ASKED):
            world.report(name, waiting="waiting_for_window", prefetched=True, message="it opens at 14:00")
    assert (len(world.in_state(T.ASKED)), len(world.in_state(T.PENDING))) == (3, 17)
    world.now = BEGIN + 800
    changed: set[str] = set()
    while world.in_state(T.ASKED):
        at_once = world.in_state(T.ASKED)
        assert len(at_once) <= 3
        for name in at_once:
            changed.add(name)
            world.obey(name)
        world.decide(1)
    assert len(changed) == 20


def test_a_window_that_was_missed_is_no_failure_either() -> None:
    world = prefetching(deadline=7200.0)
    world.decide()
    (canary,) = world.wave(1)
    world.report(canary, "FETCH")
    world.decide()
    # The download ends after the window has closed.
    world.now = BEGIN + 800 + 3600
    world.report(canary, waiting="waiting_for_window", prefetched=True, message="it opens tomorrow")
    world.decide()
    assert world.rollout.targets[canary].deadline == BEGIN + 800 + 86400 + 7200
    world.decide(40000)
    assert world.state(canary) is T.INSTALLING
    world.now = BEGIN + 800 + 86400 + 60
    world.obey(canary)
    world.decide()
    assert world.state(canary) is T.ACTIVE


def test_a_device_that_does_not_know_the_time_runs_into_its_deadline() -> None:
    world = prefetching(deadline=600.0)
    world.decide()
    (canary,) = world.wave(1)
    world.report(canary, waiting="clock_not_set", message="set its clock")
    world.decide(800 + 599)
    assert world.state(canary) is T.ASKED
    world.decide(1)
    target = world.rollout.targets[canary]
    assert (target.state, target.reason) == (T.TIMED_OUT, "clock_not_set")
    assert "set its clock" in target.message


def test_what_waits_for_its_window_is_turned_back_at_once_by_an_abort() -> None:
    world = prefetching()
    world.decide()
    (canary,) = world.wave(1)
    world.report(canary, waiting="waiting_for_window", prefetched=True, message="it opens at 14:00")
    world.decide()
    assert world.state(canary) is T.ASKED
    world.take(abort(world.rollout, "bob", world.now))
    world.decide()
    wish = world.wishes[canary]
    assert (wish.bundle, wish.windows) == (OLD, ()), "going back waits for no window"


def test_a_pinned_device_waits_until_it_is_unpinned() -> None:
    world = World().begin()
    pinned = world.wave(2)[0]
    world.set(pinned, pinned=True)
    for _ in (1, 2, 3):
        world.decide()
        world.obey_all()
        world.bake()
    assert (world.state(pinned), world.rollout.targets[pinned].reason) == (T.DEFERRED, "pinned")
    assert pinned not in world.wishes


def test_a_device_that_runs_it_already_is_not_asked() -> None:
    world = World().begin()
    (canary,) = world.wave(1)
    report = world.devices[canary].report
    assert report is not None
    world.set(canary, report=structs.replace(report, active=NEW))
    world.decide()
    assert world.rollout.targets[canary].reason == "already_active"
    assert states(world) == [W.PASSED, W.OPEN, W.PENDING]


def test_other_bytes_under_the_same_name_are_a_failure() -> None:
    world = World().begin()
    world.decide()
    (canary,) = world.wave(1)
    world.report(canary, active=Bundle(NEW.name, NEW.version, "9" * 64))
    world.decide(1)
    assert "digest_mismatch" in world.rollout.reason


def test_a_device_that_leaves_the_bundle_later_has_failed() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    (canary,) = world.wave(1)
    world.report(canary, active=OLD)
    world.decide(1)
    assert world.rollout.state is S.ROLLING_BACK
    assert "reverted" in world.rollout.reason


def test_a_wish_that_somebody_replaced_is_given_up_not_fought_for() -> None:
    world = World().begin()
    world.decide()
    (canary,) = world.wave(1)
    world.report(canary, "FETCH")
    world.decide(1)
    world.set(canary, desired="of-somebody-else")
    world.decide(1)
    assert (world.state(canary), world.rollout.targets[canary].reason) == (T.SUPERSEDED, "replaced")
    assert world.rollout.state is S.PAUSED
    assert len(world.published) == 1


def test_an_old_report_under_the_same_revision_says_nothing_of_another_bundle() -> None:
    world = World().begin()
    world.decide()
    (canary,) = world.wave(1)
    world.report(canary, error="revoked", message="old", followed="another@1.0.0")
    world.decide(1)
    assert world.state(canary) is T.ASKED


def test_a_rollback_that_a_device_refuses_is_shown() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.bake(crashes=1)
    (canary,) = world.wave(1)
    world.report(canary, error="epoch_rollback", message="1.0.0 lies below the security epoch")
    world.decide(1)
    assert world.rollout.state is S.ROLLED_BACK
    target = world.rollout.targets[canary]
    assert (target.state, target.turn_back, target.reason) == (T.FAILED, TurnBack.REFUSED, "epoch_rollback")
    assert "1 of 1 devices were not turned back" in world.rollout.reason


def test_a_device_that_ran_nothing_before_cannot_be_turned_back_and_its_wish_is_withdrawn() -> None:
    world = World().begin()
    (canary,) = world.wave(1)
    world.set(canary, report=None)
    world.decide()
    world.report(canary, error="canary_drift", message="no")
    world.decide(1)
    assert world.rollout.state is S.ROLLED_BACK
    assert world.rollout.targets[canary].turn_back is TurnBack.IMPOSSIBLE
    assert world.wishes[canary].bundle is None


def test_a_device_that_never_says_it_was_turned_back_does_not_keep_the_rollout() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.set(world.wave(1)[0], online=False)
    world.take(abort(world.rollout, "bob", world.now))
    world.decide(world.spec.deadline)
    assert world.rollout.state is S.ABORTED
    assert world.rollout.targets[world.wave(1)[0]].turn_back is TurnBack.TIMED_OUT


def test_turning_everything_back_reaches_the_waves_before() -> None:
    world = World(rollback="all").begin()
    world.decide()
    world.obey_all()
    world.bake()
    world.obey_all()
    world.bake(crashes=1)
    assert world.rollout.state is S.ROLLING_BACK
    back = {name for name, wish in world.wishes.items() if wish.bundle == OLD}
    assert back == {*world.wave(1), *world.wave(2)}


def test_turning_a_wave_back_leaves_those_that_were_judged_good() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.bake()
    world.obey_all()
    world.bake(crashes=1)
    assert {name for name, wish in world.wishes.items() if wish.bundle == OLD} == set(world.wave(2))
    for name in world.wave(2):
        world.obey(name)
    world.decide(1)
    assert world.rollout.state is S.ROLLED_BACK
    assert world.in_state(T.BAKED) == world.wave(1)


def test_without_turning_back_a_halted_rollout_stays_until_a_person_decides() -> None:
    world = World(rollback="none").begin()
    world.decide()
    (canary,) = world.wave(1)
    world.fail(canary)
    world.decide(1)
    assert world.rollout.state is S.HALTED
    world.take(retry(world.rollout, "bob", world.now))
    world.decide(1)
    assert world.wishes[canary].revision == "ro1.w1.a2"
    assert world.rollout.state is S.RUNNING
    world.obey_all()
    world.bake()
    assert states(world)[0] is W.PASSED


def test_paused_nothing_new_is_sent_and_failures_still_halt() -> None:
    world = World().begin()
    world.decide()
    world.take(pause(world.rollout, "bob", world.now))
    (canary,) = world.wave(1)
    world.obey(canary)
    world.decide(5)
    assert world.state(canary) is T.ACTIVE
    world.bake()
    assert len(world.published) == 1
    world.report(canary, active=OLD)
    for _ in range(world.spec.halt.max_failures):
        world.decide(1)
    assert world.state(canary) is T.FAILED
    world.take(resume(world.rollout, "bob", world.now))
    world.decide(1)
    assert world.rollout.state is S.ROLLING_BACK


def test_one_in_ten_that_fell_silent_holds_nobody_up_and_is_not_called_baked() -> None:
    world = World(20, waves=(Size(percent=100),)).begin()
    world.decide()
    world.obey_all()
    silent = world.wave(1)[0]
    world.now += world.spec.bake
    world.serve(*[name for name in world.devices if name != silent])
    world.set(silent, online=False)
    world.decide()
    assert states(world) == [W.PASSED]
    assert world.state(silent) is T.ACTIVE
    world.set(silent, online=True)
    world.serve(silent)
    world.decide(1)
    assert world.rollout.state is S.DONE


def test_too_many_that_fell_silent_are_inconclusive() -> None:
    world = World(10, waves=(Size(percent=100),)).begin()
    world.decide()
    world.obey_all()
    gone = world.wave(1)[:3]
    world.now += world.spec.bake
    world.serve(*[name for name in world.devices if name not in gone])
    for name in gone:
        world.set(name, online=False)
    world.decide()
    assert states(world) == [W.INCONCLUSIVE]
    assert "3 of 10 devices were not heard since" in world.rollout.reason


def test_late_devices_of_a_dynamic_rollout_are_further_waves_behind_the_gates() -> None:
    world = World(2, mode="dynamic", waves=(Size(1), Size(percent=100))).begin()
    late = [f"late-{number}" for number in range(4)]
    world.devices |= {name: world.fresh(name) for name in late}
    world.newcomers = tuple(Newcomer(name, "", "") for name in late)
    world.decide()
    assert len(world.wishes) == 1
    for _ in range(4):
        world.obey_all()
        world.bake()
    assert set(world.in_state(T.BAKED)) == set(world.devices)
    assert world.rollout.state is S.RUNNING
    world.decide(world.spec.expires)
    assert world.rollout.state is S.DONE


def test_an_idle_box_that_caught_up_is_judged_on_health_and_that_is_said() -> None:
    world = World().begin()
    away = world.wave(3)[0]
    world.set(away, online=False)
    for _ in (1, 2, 3):
        world.decide()
        world.obey_all()
        world.bake()
    world.set(away, online=True, seen_at=world.now)
    world.decide()
    world.obey_all()
    world.now += world.spec.bake
    world.set(away, seen_at=world.now, heard_at=world.now)
    world.decide()
    assert world.rollout.state is S.DONE
    assert world.rollout.targets[away].reason == "ready_alone"


def test_counters_of_a_device_that_was_never_asked_are_needed_too() -> None:
    world = World().begin()
    (canary,) = world.wave(1)
    world.set(canary, day_before=None, counters=None)
    world.decide()
    world.obey_all()
    world.now += world.spec.bake
    world.set(canary, counters=work(500), heard_at=world.now, seen_at=world.now)
    world.decide()
    assert states(world)[0] is W.INCONCLUSIVE


def test_a_draft_that_nobody_starts_expires() -> None:
    world = World()
    world.decide(world.spec.expires)
    assert world.rollout.state is S.ABORTED


def test_an_expired_rollout_calls_nobody_a_success() -> None:
    world = World().begin()
    world.decide()
    world.obey_all()
    world.take(pause(world.rollout, "bob", world.now))
    world.decide(world.spec.expires)
    assert world.rollout.state is S.ABORTED
    assert not world.in_state(T.BAKED)
    assert {world.rollout.targets[name].reason for name in world.devices} == {"expired"}


def test_counters_that_begin_anew_are_no_fall() -> None:
    assert Counters(5).minus(Counters(7)) is None
    assert Counters(7).minus(Counters(5)) == Counters(2)


def test_of_ten_thousand_devices_a_bad_bundle_reaches_the_first_wave_alone() -> None:
    waves = (Size(1), Size(percent=1), Size(percent=10), Size(percent=50), Size(percent=100))
    world = World(10_000, sites=40, waves=waves, max_in_progress=10_000).begin()
    world.decide()
    world.fail(world.wave(1)[0])
    world.decide(1)
    world.obey(world.wave(1)[0])
    world.decide(1)
    assert world.rollout.state is S.ROLLED_BACK
    assert {wish.device for wish in world.published} == set(world.wave(1))


def test_a_bundle_that_only_fails_in_numbers_stops_at_the_wave_that_shows_it() -> None:
    waves = (Size(1), Size(percent=1), Size(percent=10), Size(percent=50), Size(percent=100))
    world = World(1_000, sites=40, waves=waves, max_in_progress=1_000).begin()
    for _ in (1, 2):
        world.decide()
        world.obey_all()
        world.bake()
    asked = world.in_state(T.ASKED)
    for name in asked[:5]:
        world.fail(name)
    for name in asked[5:]:
        world.obey(name)
    world.decide(1)
    assert world.rollout.state is S.ROLLING_BACK
    assert "5 of 100 devices failed, 5 are enough" in world.rollout.reason
    assert {target.wave for target in world.rollout.targets.values() if target.attempt} == {1, 2, 3}
