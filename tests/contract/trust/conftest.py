"""One honest publisher and one device for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.trust.publisher import Device, Publisher


@pytest.fixture
def publisher() -> Publisher:
    made = Publisher()
    made.publish()
    return made


@pytest.fixture
def device(tmp_path: Path, publisher: Publisher) -> Device:
    return Device(tmp_path / "trust", publisher.files["metadata/1.root.json"])
