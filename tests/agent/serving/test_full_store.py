"""A store without room: requests are turned away, and taken again as soon as there is room, asked or not. What was
accepted before is answered once, as soon as its answer is stored.
"""

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
    error = client.wait_answer("big").lasts[0]["error"]
    assert (error["code"], error["type"]) == (503, "store_unavailable")
    assert device.call(lambda: device.serving.reasons) == ["store_unavailable"]
    device.database.query("PRAGMA max_page_count = 1000000")
    device.call(device.serving.probe_store)
    device.until(lambda: not device.serving.reasons)
    assert device.health_changes >= 2
    client.ask("big", "count 1 " + "x" * 500_000)
    assert client.wait_answer("big").lasts[0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("how", ["comes back", "comes back after a power cut"])
def test_an_answer_is_not_given_before_it_is_stored_and_so_never_twice(
    make_device: MakeDevice, client: RawClient, how: str
) -> None:
    """``streamed`` was being told when the disk failed; of ``silent`` nothing had left."""
    device = make_device().start(sealed())
    client.send("streamed", "hold")
    device.until(lambda: device.meter.frames > 0)
    client.send("silent", "hold", stream=False)
    device.until(lambda: device.serving.active == 2)
    device.database.query("PRAGMA query_only = 1")
    for worker in device.workers.started:
        device.call(worker.let_go)
    device.until(lambda: device.result_store.holding == 2)
    client.ask("newer", "count 1")
    assert client.wait_answer("newer").lasts[0]["error"]["type"] == "store_unavailable"
    assert sorted(client.unanswered()) == ["silent", "streamed"]
    if how == "comes back":
        device.database.query("PRAGMA query_only = 0")
        first, second = client.wait_answer("streamed"), client.wait_answer("silent")
        assert [answer.lasts[0]["finish_reason"] for answer in (first, second)] == ["stop", "stop"]
    else:
        device.kill()
        device = make_device().start(sealed())
        first = client.wait_answer("streamed")
        assert first.lasts[0]["error"]["type"] == "interrupted"
        device.until(lambda: device.serving.active == 1)
        for worker in device.workers.started:
            device.call(worker.let_go)
        second = client.wait_answer("silent")
        assert (second.lasts[0]["finish_reason"], second.lasts[0]["attempt"]) == ("stop", 2)
    client.ask("last", "count 1")
    client.wait_answer("last")
    assert [len(answer.lasts) for answer in (first, second)] == [1, 1]
