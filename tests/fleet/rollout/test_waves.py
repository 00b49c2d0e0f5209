"""Waves: stable, whole, spread over hardware classes and sites."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fleet.rollout.waves import Candidate, Size, assign, fraction, spread

DEFAULT = (Size(1), Size(percent=1), Size(percent=10), Size(percent=50), Size(percent=100))

candidates = st.lists(
    st.builds(Candidate, st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.sampled_from("ab"), st.sampled_from("xyz")),
    unique_by=lambda each: each.device,
    max_size=60,
)


def boxes(count: int) -> list[Candidate]:
    return [Candidate(f"box-{n}", f"class-{n % 3}", f"site-{n % 5}") for n in range(count)]


def test_the_default_waves_of_thirty_devices() -> None:
    found = assign("12", boxes(30), DEFAULT, Size())
    assert [len(wave) for wave in found.waves] == [1, 2, 12, 15]


def test_the_default_waves_of_ten_thousand() -> None:
    found = assign("12", boxes(10_000), DEFAULT, Size(percent=5))
    assert [len(wave) for wave in found.waves] == [1, 94, 855, 3800, 4750]
    assert len(found.holdout) == 500


@given(candidates, st.integers(0, 100))
def test_every_device_is_in_one_wave_or_held_out(found: list[Candidate], percent: int) -> None:
    assigned = assign("7", found, DEFAULT, Size(percent=percent))
    everyone = [device for wave in assigned.waves for device in wave] + assigned.holdout
    assert sorted(everyone) == sorted(each.device for each in found)
    assert all(assigned.waves)
    assert assigned.waves or not found


@given(candidates, st.randoms())
def test_the_order_of_asking_changes_nothing(found: list[Candidate], random: Random) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert assign("7", found, DEFAULT, Size(2)) == assign("7", shuffled, DEFAULT, Size(2))


def test_another_rollout_begins_with_other_devices() -> None:
    first = {assign(str(number), boxes(500), DEFAULT, Size()).waves[0][0] for number in range(30)}
    assert len(first) > 20


@given(st.integers(1, 400))
def test_every_beginning_has_its_share_of_each_class_and_site(count: int) -> None:
    found = boxes(600)
    by_device = {each.device: each for each in found}
    beginning = [by_device[device] for device in spread("9", found)[:count]]
    for hardware, members in Counter(each.hardware for each in beginning).items():
        assert abs(members - count / 3) <= 2, hardware
    for site, members in Counter(each.site for each in beginning).items():
        assert abs(members - count / 5) <= 4, site


def test_a_control_group_never_takes_everybody() -> None:
    assert assign("1", boxes(3), DEFAULT, Size(percent=100)).waves == [[spread("1", boxes(3))[0]]]
    assert assign("1", boxes(1), DEFAULT, Size(5)).holdout == []


def test_the_hash_is_the_same_for_ever() -> None:
    assert fraction("ro1", "kitchen-1") == 0.956550011498692
