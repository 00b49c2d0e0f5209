"""A short storm; ``make chaos REQUESTS=n`` runs longer ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chaos.device import reference
from tests.chaos.storm import KINDS, Storm

pytestmark = pytest.mark.broker


def test_each_request_has_exactly_one_result_whatever_breaks(tmp_path: Path) -> None:
    report = Storm(tmp_path, requests=600, seed=7, every=75, say=lambda _line: None).run()
    assert report.broken == []
    assert sum(report.outcomes.values()) == 600
    assert set(KINDS) <= report.disturbances.keys()
    assert set(report.bundles) == {reference(0), reference(1)}, "some were answered before, some after a swap"
    assert report.again > 0
    assert report.asked > 600


def test_real_models_keep_the_promise_too(tmp_path: Path, tiny_bundle: Path) -> None:
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    report = Storm(tmp_path, requests=260, seed=3, every=20, say=lambda _line: None, bundles=[tiny_bundle, other]).run()
    assert report.broken == []
    assert sum(report.outcomes.values()) == 260
    assert set(KINDS) <= report.disturbances.keys()
