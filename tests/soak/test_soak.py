"""A short soak; ``make soak MINUTES=n`` runs longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.soak import FAULTS, Soak

pytestmark = pytest.mark.broker


def test_nothing_is_lost_while_everything_fails_and_bundles_are_swapped(tiny_bundle: Path, tmp_path: Path) -> None:
    report = Soak(tmp_path, tiny_bundle, 0.25, 7, lambda _line: None, fault_seconds=2.0).run()
    assert report.broken == []
    assert report.lost == 0
    assert report.requests > 0
    assert report.swaps >= 2
    assert set(FAULTS) <= set(report.faults)
