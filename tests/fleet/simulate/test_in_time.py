"""Whole rollouts in simulated time, in every weather: bounds hold, bad bundles halt early, and all of them end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fleet.rollout.model import Rollout
from fleet.rollout.states import ENDED, IN_PROGRESS, RolloutState, TargetState, WaveState
from tests.fleet.simulate.device import Behaviour
from tests.fleet.simulate.in_time import CALM, FleetInTime, Weather

S, T = RolloutState, TargetState
ROUGH = Weather(outages_per_day=6, outage_seconds=900, source_fails=3, clocks=86400.0, drift=500.0)
BUNDLES = {
    "model@3.0.0": Behaviour(fails="CANARY"),
    "model@3.1.0": Behaviour(fails="PROBATION", reason="probation_errors"),
    "model@3.2.0": Behaviour(fails="RESOLVE", reason="not_listed"),
    "model@4.0.0": Behaviour(speed=0.5),
    "model@4.1.0": Behaviour(errors=0.3),
    "model@4.2.0": Behaviour(crashes_per_hour=30),
}
WAVES = ["1", "10%", "50%", "100%"]
HOUR = 3600.0


def fleet(seed: int, weather: Weather = CALM, count: int = 60, **values: Any) -> FleetInTime:
    """After a day of work."""
    made = FleetInTime(count, seed=seed, bundles=BUNDLES, weather=weather, telemetry=600.0, interval=60.0, **values)
    made.pass_time(2 * HOUR)
    return made


def watch(made: FleetInTime, most: int) -> None:
    """Bounds, after every decision."""

    def look(rollout: Rollout) -> None:
        assert sum(target.state in IN_PROGRESS for target in rollout.targets.values()) <= most
        opened = [wave.number for wave in rollout.waves if wave.state is not WaveState.PENDING]
        asked = {target.wave for target in rollout.targets.values() if target.attempt}
        assert asked <= set(opened)
        for wave in rollout.waves:
            if wave.state is WaveState.OPEN:
                before = [each.state for each in rollout.waves if each.number < wave.number]
                assert set(before) <= {WaveState.PASSED}, "a wave opened before the one before it had passed"
        assert all(len(holders) <= rollout.spec.slots_per_site for holders in made.slots.values())

    made.look = look


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("weather", [CALM, ROUGH], ids=["calm", "rough"])
def test_a_good_bundle_comes_to_everybody_within_every_bound(seed: int, weather: Weather) -> None:
    made = fleet(seed, weather)
    watch(made, 5)
    made.start("2.0.0", waves=WAVES, max_in_progress=5, slots_per_site=2, holdout=4)
    found = made.run()
    assert found.state is S.DONE, found.reason
    states = Counter(target.state for target in found.targets.values())
    assert states[T.BAKED] == 56, states
    assert not {name for name, target in found.targets.items() if target.wave == 0} & set(made.asked)
    assert Counter(device.active for device in made.devices.values()) == {"model@2.0.0": 56, "model@1.0.0": 4}
    # Each of them installed it once, whatever was sent how often.
    assert {tuple(device.installed) for device in made.devices.values()} == {(), ("model@2.0.0",)}


@pytest.mark.parametrize(("seed", "weather"), [(0, CALM), (1, ROUGH)], ids=["calm", "rough"])
@pytest.mark.parametrize("version", ["3.0.0", "3.1.0", "3.2.0", "4.0.0", "4.1.0", "4.2.0"])
def test_a_bad_bundle_halts_in_the_first_wave_and_is_turned_back(seed: int, weather: Weather, version: str) -> None:
    made = fleet(seed, weather)
    watch(made, 100)
    made.start(version, waves=WAVES, patience="1d")
    found = made.run()
    assert found.state is S.ROLLED_BACK, found.reason
    assert set(made.asked) == {target.device for target in found.wave_targets(1)}
    assert {device.active for device in made.devices.values()} == {"model@1.0.0"}


def test_a_retry_is_refused_by_devices_that_the_bundle_failed_on_in_its_trial() -> None:
    """Quarantine is a device's own; another version, or its own operator, is the way on."""
    made = fleet(3, count=12)
    made.start("3.0.0", waves=WAVES, rollback="none")
    made.pass_time(HOUR)
    assert made.rollout is not None
    assert (made.rollout.state, "canary_drift (1)" in made.rollout.reason) == (S.HALTED, True)
    made.retry()
    made.pass_time(HOUR)
    assert (made.rollout.state, "quarantined (1)" in made.rollout.reason) == (S.HALTED, True)
    assert len(set(made.asked)) == 1


def test_a_retry_succeeds_where_the_bundle_was_refused_before_its_trial() -> None:
    bundles = {"model@2.0.0": Behaviour(fails="RESOLVE", reason="not_listed")}
    made = FleetInTime(12, seed=3, bundles=bundles, telemetry=600.0, interval=60.0)
    made.pass_time(2 * HOUR)
    made.start("2.0.0", waves=WAVES, rollback="none")
    made.pass_time(HOUR)
    assert made.rollout is not None
    assert (made.rollout.state, "not_listed (1)" in made.rollout.reason) == (S.HALTED, True)
    # The publisher has listed it since.
    del bundles["model@2.0.0"]
    made.retry()
    found = made.run()
    assert (found.state, Counter(target.state for target in found.targets.values())) == (S.DONE, {T.BAKED: 12})


def test_the_same_seed_is_the_same_story() -> None:
    stories = []
    for _ in range(2):
        made = fleet(7, ROUGH, count=20)
        made.start("2.0.0", waves=["2", "100%"])
        stories.append((made.run(), made.now, made.asked))
    assert stories[0] == stories[1]
    other = fleet(8, ROUGH, count=20)
    other.start("2.0.0", waves=["2", "100%"])
    assert (other.run(), other.asked) != (stories[0][0], stories[0][2])


def test_nobody_is_asked_outside_the_window_and_it_ends_all_the_same() -> None:
    made = fleet(1, count=12)
    asked_at: list[float] = []

    def look(rollout: Rollout) -> None:
        asked_at.extend(target.asked_at for target in rollout.targets.values() if target.asked_at is not None)

    made.look = look
    made.start("2.0.0", waves=WAVES, windows=[{"from": "01:00", "until": "02:30", "zone": "UTC"}])
    assert made.run().state is S.DONE
    minutes = {int(at % 86400 // 60) for at in asked_at}
    assert minutes
    assert min(minutes) >= 60
    assert max(minutes) < 150


def test_devices_fetch_ahead_and_change_within_the_window_alone() -> None:
    made = fleet(1, count=12)
    ahead: set[str] = set()
    changed: list[int] = []

    def look(_: Rollout) -> None:
        ahead.update(name for name, facts in made.facts.items() if facts.report is not None and facts.report.prefetched)
        changes = sum(device.active == "model@2.0.0" for device in made.devices.values()) - len(changed)
        changed.extend([int(made.now % 86400 // 60)] * changes)

    made.look = look
    window = {"from": "01:00", "until": "02:30", "zone": "UTC"}
    made.start("2.0.0", waves=WAVES, windows=[window], prefetch=True)
    assert made.run().state is S.DONE
    assert ahead, "nobody fetched before its window"
    assert len(changed) == 12
    # Whoever began within it ends it: a canary, the switch and probation of half a minute at most each.
    assert all(60 <= minute <= 152 for minute in changed), changed


def test_devices_that_are_gone_for_good_keep_nobody() -> None:
    made = fleet(2, count=20)
    started = made.start("2.0.0", waves=WAVES, offline="1d")
    gone = [target.device for target in started.wave_targets(4)][:5]
    for name in gone:
        made.cut(name)
    found = made.run()
    assert found.state in ENDED
    assert {found.targets[name].state for name in gone} <= {T.SKIPPED}
    assert {found.targets[name].state for name in made.devices if name not in gone} == {T.BAKED}
