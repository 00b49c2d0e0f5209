"""Progress is what the watchdog is fed for."""

from __future__ import annotations

from agent.systemd.liveness import Liveness


def test_a_silent_part_has_stalled_and_a_beating_one_has_not() -> None:
    progress = Liveness()
    progress.expect("mqtt", 60, now=0)
    progress.expect("telemetry", 30, now=0)
    assert progress.stalled(30) == []
    assert progress.beat("mqtt", 40) == 40
    assert progress.stalled(61) == ["telemetry"]
    progress.beat("telemetry", 70)
    assert progress.stalled(71) == []
    assert progress.stalled(101) == ["mqtt", "telemetry"]


def test_a_part_of_which_nothing_is_expected_may_be_silent() -> None:
    progress = Liveness()
    assert progress.stalled(1e9) == []
    assert progress.beat("answers", 5) == 0
    progress.expect("answers", 1, now=100)
    assert progress.stalled(100.5) == []
