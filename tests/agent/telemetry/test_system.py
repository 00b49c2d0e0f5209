"""A sample of this machine: what is there is right, what is not there is absent."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from agent.telemetry import system
from agent.telemetry.system import SystemSampler


def test_sample_names_our_processes_and_the_machine(tmp_path: Path) -> None:
    sample = SystemSampler(tmp_path).sample({os.getpid(): "agent", 2**22 + 1: "gone"})
    assert sample["memory"]["total"] == psutil.virtual_memory().total
    assert len(sample["cpu"]["cores"]) == psutil.cpu_count()
    (own,) = sample["processes"]
    assert own["name"] == "agent"
    assert own["rss"] > 1 << 20
    assert 0 < own["pss"] <= own["rss"] * 1.1
    assert sample["disk"]["total"] > 0


def test_absent_sensors_are_absent_never_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError

    for name in ("sensors_temperatures", "cpu_freq", "swap_memory", "net_io_counters", "disk_io_counters"):
        monkeypatch.setattr(system.psutil, name, broken, raising=False)
    monkeypatch.setattr(system, "PRESSURE", tmp_path / "none")
    monkeypatch.setattr(system, "THROTTLE", tmp_path / "none")
    sample = SystemSampler(tmp_path).sample({})
    for name in ("temperatures", "frequency_mhz", "swap", "network", "pressure", "throttled"):
        assert name not in sample


def test_pressure_and_throttling_are_read_as_the_kernel_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").write_text(
        "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=3\n"
    )
    for core, count in (("cpu0", "3\n"), ("cpu1", "4\n")):
        folder = tmp_path / core / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(count)
    monkeypatch.setattr(system, "PRESSURE", tmp_path)
    monkeypatch.setattr(system, "THROTTLE", tmp_path)
    sample = SystemSampler(tmp_path).sample({})
    assert sample["pressure"] == {"memory": {"some": 1.5, "full": 0.25}}
    assert sample["throttled"] == 7
