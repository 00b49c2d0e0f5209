"""A market and a device for every test; the bundle behind them is real."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.install.market import Device, Market


@pytest.fixture
def market(tmp_path: Path, tiny_bundle: Path) -> Market:
    return Market(tmp_path / "market", tiny_bundle)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "device")
