"""One connection for all who ask: made once, under the name that a broker's rules know, and again after a failure."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from contract.errors import SourceUnavailable
from edge_bundle.broker import parse_broker
from fleet.gateway.shared_client import SharedClient
from tests.broker import Broker

pytestmark = pytest.mark.broker

ROOT = "edge/v1"
RULES = "topic readwrite $SYS/#\npattern readwrite edge/v1/d/+/#\npattern read edge/v1/c/%u/#\n"
"""Replies are read under one's own name alone."""


def test_all_who_ask_share_one_connection_made_again_when_the_first_attempt_failed(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker")
    shared = SharedClient(broker.address, ROOT)

    async def story() -> None:
        with pytest.raises(SourceUnavailable):
            await shared.connected()
        assert shared.now is None
        broker.start()
        first, second = await asyncio.gather(shared.connected(), shared.connected())
        assert first is second is shared.now
        await shared.close()
        assert shared.now is None
        assert not first.connected

    try:
        asyncio.run(story())
    finally:
        broker.stop()


def test_it_has_the_name_of_its_account(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text(RULES)
    user = "user root\n" if os.geteuid() == 0 else ""  # mosquitto's own user may not read the directory
    broker = Broker(tmp_path / "broker", settings=f"{user}acl_file {tmp_path}/rules\n")
    broker.start()
    shared = SharedClient(parse_broker(broker.url.replace("mqtt://", "mqtt://console@")), ROOT)

    async def name() -> str:
        try:
            return (await shared.connected()).name
        finally:
            await shared.close()

    try:
        assert asyncio.run(name()) == "console"
    finally:
        broker.stop()
