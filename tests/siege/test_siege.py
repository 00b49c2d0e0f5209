"""A short siege; ``make siege MINUTES=n`` runs longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.siege.siege import BLOWS, Siege

pytestmark = pytest.mark.broker


def test_nothing_that_is_sent_broken_or_stored_keeps_the_device_from_its_work(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    report = Siege(tmp_path, tiny_bundle, 14, said.append, shots_per_blow=50).run(0.05)
    assert report.broken == [], said
    assert report.rounds == 1
    assert set(report.blows) == set(BLOWS)
    assert report.owed > 200
    assert report.frames > report.owed
