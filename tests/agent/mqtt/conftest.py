"""Everything here reconnects often: the waits in between are no part of what is tried."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.mqtt.connection.FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr("agent.mqtt.sender.CALM_SECONDS", 0.2)
