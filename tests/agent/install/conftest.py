"""A market and a device for every test; the bundle behind them is real. Coroutine tests get an event loop each."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

from tests.agent.install.market import Device, Market


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a fresh event loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def market(tmp_path: Path, tiny_bundle: Path) -> Market:
    return Market(tmp_path / "market", tiny_bundle)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "device")
