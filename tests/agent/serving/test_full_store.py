"""A store without room: requests are turned away, and taken again as soon as there is room, asked or not."""

from __future__ import annotations

import pytest

from tests.agent.device import sealed
from tests.agent.serving.conftest import MakeDevice
from tests.e2e.raw_client import RawClient

pytestmark = pytest.mark.broker


def test_a_store_that_has_room_again_is_noticed_without_a_request(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    (pages,) = device.database.query("PRAGMA page_count")[0]
    device.database.query(f"PRAGMA max_page_count = {pages}")
    client.ask("big", "count 1 " + "x" * 500_000)
    error = client.wait_answer("big", 30).lasts[0]["error"]
    assert (error["code"], error["type"]) == (503, "store_unavailable")
    assert device.call(lambda: device.serving.reasons) == ["store_unavailable"]
    device.database.query("PRAGMA max_page_count = 1000000")
    device.call(device.serving.look_at_store)
    device.until(lambda: not device.serving.reasons)
    assert device.health_changes >= 2
    client.ask("big", "count 1 " + "x" * 500_000)
    assert client.wait_answer("big", 30).lasts[0]["finish_reason"] in ("stop", "length")
