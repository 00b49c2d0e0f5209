"""Boards with fast and slow cores, as their kernels show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.host.cores import computing_cores, strongest
from tests.agent.telemetry.trees import plant


def capacities(*strengths: int, name: str = "cpu_capacity") -> Mapping[str, str]:
    return {f"cpu{core}/{name}": f"{strength}\n" for core, strength in enumerate(strengths)}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, {0, 1, 2, 3, 4, 5, 6, 7}),  # a kernel that says nothing, as in most virtual machines
        (capacities(*[1024] * 8), {0, 1, 2, 3, 4, 5, 6, 7}),
        (capacities(*[414] * 4, *[1024] * 4), {4, 5, 6, 7}),  # RK3588: A55 and A76
        (capacities(*[485] * 6, *[1024] * 2), {0, 1, 2, 3, 4, 5, 6, 7}),  # six slow ones do more than two fast ones
        (capacities(*[280] * 4, *[870] * 3, 1024), {4, 5, 6, 7}),  # a prime core waits for its neighbours, which pays
        (capacities(*[100] * 7, 1024), {7}),
        (capacities(*[5100000] * 4, *[3800000] * 4, name="cpufreq/cpuinfo_max_freq"), {0, 1, 2, 3, 4, 5, 6, 7}),
        (capacities(*[1800000] * 4, *[4000000] * 4, name="cpufreq/cpuinfo_max_freq"), {4, 5, 6, 7}),
        ({**capacities(*[414] * 4), **capacities(1, name="cpufreq/cpuinfo_max_freq")}, {0, 1, 2, 3, 4, 5, 6, 7}),
        (capacities(0, *[414] * 7), {0, 1, 2, 3, 4, 5, 6, 7}),
        ({f"cpu{core}/cpu_capacity": "nonsense" for core in range(8)}, {0, 1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_the_cores_that_do_most_together_compute(tmp_path: Path, files: Mapping[str, str], cores: set[int]) -> None:
    assert computing_cores(range(8), plant(tmp_path, files)) == cores


def test_only_cores_that_this_process_may_use_count(tmp_path: Path) -> None:
    root = plant(tmp_path, capacities(*[414] * 4, *[1024] * 4))
    assert computing_cores({0, 1, 2, 3, 4}, root) == {0, 1, 2, 3, 4}
    assert computing_cores({0, 1, 4, 5}, root) == {4, 5}
    assert computing_cores({2}, root) == {2}


def test_of_equals_the_fewer_ones_are_taken() -> None:
    assert strongest({0: 500, 1: 500, 2: 500, 3: 500, 4: 1000, 5: 1000}) == {0, 1, 2, 3, 4, 5}
    assert strongest({0: 500, 1: 500, 2: 1000, 3: 1000}) == {2, 3}
