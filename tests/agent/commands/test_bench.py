"""``edge-agent bench`` on real workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.install.market import Device, Market


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Device:
    """Serves 1.1.0 and had 1.0.0 before."""
    market = Market(tmp_path_factory.mktemp("market"), tiny_bundle)
    device = Device(tmp_path_factory.mktemp("device") / "state")
    for version in ("1.0.0", "1.1.0"):
        market.publish(version)
        device.activate(device.install(market.job(device.directory.root, version)))
    return device


def test_the_active_bundle_is_compared_with_the_previous_one_and_its_budget(device: Device) -> None:
    done = bench("--state-dir", device.directory.root, "--tokens", "8", "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["agent_running"] is False
    assert report["load_average"] >= 0
    assert [(each["bundle"], each["state"]) for each in report["bundles"]] == [
        ("tiny@1.1.0", "active"), ("tiny@1.0.0", "previous"),
    ]  # fmt: skip
    for each in report["bundles"]:
        measured = each["measured"]
        assert measured["tokens"] == 8
        assert measured["load_seconds"] > 0 and measured["peak_rss_bytes"] > 1 << 20
        assert [speed["streams"] for speed in measured["speeds"]] == [1, 4]
        assert all(speed["tokens_per_second"] > 0 and speed["first_token_ms"] > 0 for speed in measured["speeds"])
        assert each["budget"]["tokens_per_second"] > 0


def test_a_person_sees_a_table_with_ratios(device: Device) -> None:
    done = bench("--state-dir", device.directory.root, "--tokens", "4", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny@1.1.0") and "engine" in lines[0]
    assert lines[3].split() == ["MEASURED", "BUDGET", "tiny@1.0.0"]
    assert [line.split("  ")[0] for line in lines[4:]] == ["load", "1 stream", "", "4 streams", "", "peak memory"]
    assert lines[5].count("tok/s") == 3 and lines[5].count("×") == 2


def test_without_a_bundle_there_is_nothing_to_measure(tmp_path: Path) -> None:
    done = bench("--state-dir", tmp_path)
    assert done.returncode == 2
    assert "nothing was installed there yet" in done.stderr


def test_a_bundle_that_was_changed_on_the_disk_is_not_loaded(device: Device) -> None:
    bundle = next(
        path for path in device.directory.bundles.iterdir() if "1.1.0" in (path / "manifest.json").read_text()
    )
    victim = bundle / "model.onnx.data"
    data = victim.read_bytes()
    victim.chmod(0o644)
    victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        done = bench("--state-dir", device.directory.root, "--active-only")
    finally:
        victim.write_bytes(data)
    assert done.returncode == 3
    assert "[digest_mismatch]" in done.stderr and "Traceback" not in done.stderr
