"""A short storm; ``make chaos REQUESTS=n`` runs longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import Storm

pytestmark = pytest.mark.broker


def test_each_request_has_exactly_one_result_whatever_breaks(tmp_path: Path) -> None:
    report = Storm(tmp_path, requests=1000, seed=7, every=120, say=lambda _line: None).run()
    assert report.broken == []
    assert sum(report.outcomes.values()) == 1000
    kinds = {"worker killed", "agent killed", "client cut", "broker killed", "agent restarted"}
    assert kinds <= report.disturbances.keys()
    assert report.asked > 1000
