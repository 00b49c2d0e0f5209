"""CPU quotas as the kernel's files tell them; memory limits are in ``tests/agent/host/test_memory.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.worker.settings import WorkerSettings, usable_threads
from contract.system.control_groups import cpu_limit


def groups(place: Path, told: str, **files: str) -> tuple[Path, Path]:
    """``/proc`` and ``/sys/fs/cgroup`` with these files; ``__`` in a name stands for a directory's end."""
    (place / "proc" / "self").mkdir(parents=True)
    (place / "proc" / "self" / "cgroup").write_text(told)
    for name, text in files.items():
        file = place / "cgroup" / name.replace("__", "/").replace("_max", ".max").replace("_cfs", ".cfs")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    (place / "cgroup").mkdir(exist_ok=True)
    return place / "proc", place / "cgroup"


def test_of_version_2_the_tightest_quota_counts(tmp_path: Path) -> None:
    files = {"box__agent__cpu_max": "max 100000", "box__cpu_max": "150000 100000", "cpu_max": "300000 100000"}
    assert cpu_limit(*groups(tmp_path, "0::/box/agent\n", **files)) == 1.5


@pytest.mark.parametrize("named", ["cpu,cpuacct", "cpu", "cpuacct,cpu"])
def test_of_version_1_as_well(tmp_path: Path, named: str) -> None:
    told = f"12:{named}:/box/agent\n4:memory:/other\n3:cpuset:/other\n0::/\n"
    inner = {"cpu__box__agent__cpu_cfs_quota_us": "-1", "cpu__box__agent__cpu_cfs_period_us": "100000"}
    outer = {"cpu__box__cpu_cfs_quota_us": "50000", "cpu__box__cpu_cfs_period_us": "20000"}
    assert cpu_limit(*groups(tmp_path, told, **inner, **outer)) == 2.5


def test_in_a_container_the_group_is_the_root_of_what_can_be_seen(tmp_path: Path) -> None:
    files = {"cpu__cpu_cfs_quota_us": "100000", "cpu__cpu_cfs_period_us": "100000"}
    assert cpu_limit(*groups(tmp_path, "4:cpu,cpuacct:/docker/0123\n", **files)) == 1.0


@pytest.mark.parametrize("told", ["0::/box\n", "4:cpu:/box\n", "nonsense\n", ""])
@pytest.mark.parametrize("quota", ["max 100000", "nonsense", "0 0", ""])
def test_without_a_quota_there_is_none(tmp_path: Path, told: str, quota: str) -> None:
    files = {"box__cpu_max": quota, "cpu__box__cpu_cfs_quota_us": quota, "cpu__box__cpu_cfs_period_us": "100000"}
    assert cpu_limit(*groups(tmp_path, told, **files)) is None


def test_a_worker_takes_no_more_threads_than_a_quota_of_version_1_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: frozenset(range(8)))
    monkeypatch.setattr("agent.worker.settings.computing_cores", lambda allowed: allowed)
    files = {"cpu__box__cpu_cfs_quota_us": "300000", "cpu__box__cpu_cfs_period_us": "100000"}
    proc, root = groups(tmp_path, "4:cpu,cpuacct:/box\n", **files)
    monkeypatch.setattr("agent.worker.settings.cpu_limit", lambda: cpu_limit(proc, root))
    assert usable_threads(WorkerSettings()) == 3
    assert usable_threads(WorkerSettings(threads=5)) == 5
