"""Requests over a real broker: exactly one answer each, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.clock import steady_clock
from agent.install.ports import SwapMode
from agent.serving.active_request import ActiveRequest
from agent.serving.settings import ServingSettings
from agent.state import result_writer
from agent.state.result_store import KEEP_SECONDS, KEEP_TOMBSTONES_SECONDS
from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker
from tests.e2e.raw_client import Answer, RawClient

pytestmark = pytest.mark.broker


def test_answer_streams_and_ends_with_the_whole_text(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(stream_interval_ms=0).start(sealed())
    client.ask("one", "hold 5")
    assert client.next_frame()[1]["d"] == "0 "
    device.call(device.workers.current.let_go)
    answer = client.wait_answer("one")
    (last,) = answer.lasts
    assert last["text"] == "0 1 2 3 4 "
    assert last["finish_reason"] == "stop"
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7, "cached_tokens": 0}
    assert last["bundle"] == "toy@1.0.0"
    assert last["attempt"] == 1
    first = answer.frames[0]
    assert first["bundle"] == "toy@1.0.0"
    assert {"queue_ms", "position", "attempt"} <= first.keys()
    assert last["text"].startswith("".join(frame["d"] for frame in answer.frames))
    assert [frame["s"] for frame in [*answer.frames, last]] == list(range(len(answer.frames) + 1))


def test_stream_false_gives_the_last_frame_only(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.ask("quiet", "count 50", stream=False)
    answer = client.wait_answer("quiet")
    assert answer.frames == []
    assert answer.lasts[0]["usage"]["completion_tokens"] == 50


def test_redelivered_request_attaches_and_later_gets_the_same_bytes(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    client.ask("twice", "hold 4")
    device.until(lambda: bool(device.workers.started[0].admitted))
    client.ask("twice", "hold 4")
    device.until(lambda: device.meter.redelivered == 1)
    device.call(device.workers.current.let_go)
    first = client.wait_answer("twice").lasts[0]
    client.ask("twice", "hold 4")
    assert client.wait_answer("twice").lasts == [first]
    assert len(device.workers.current.admitted) == 1


def test_same_id_with_another_body_is_a_conflict(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.ask("same", "count 1")
    client.wait_answer("same")
    client.ask("same", "count 2")
    error = client.wait_answer("same").lasts[0]["error"]
    assert (error["code"], error["type"], error["field"]) == (409, "id_conflict", "id")


def test_killed_worker_is_replaced_and_its_requests_run_again(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    client.ask("shot", "wait 3")
    device.until(lambda: bool(device.workers.current.admitted))
    device.call(device.workers.current.kill)
    device.until(lambda: len(device.workers.started) == 2 and bool(device.workers.current.admitted))
    device.call(device.workers.current.let_go)
    (last,) = client.wait_answer("shot").lasts
    assert last["attempt"] == 2
    assert last["text"] == "0 1 2 "


def test_request_that_ends_two_workers_gets_an_error(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    client.ask("poison", "wait 3")
    for number in (1, 2):
        device.until(lambda n=number: len(device.workers.started) == n and bool(device.workers.current.admitted))
        device.call(device.workers.current.kill)
    error = client.wait_answer("poison").lasts[0]["error"]
    assert (error["code"], error["type"]) == (500, "engine_failed")
    client.ask("next", "count 2")
    assert client.wait_answer("next").lasts[0]["text"] == "0 1 "


def test_full_queue_is_said_with_a_time(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=1), queue_limit=2).start(sealed())
    client.ask("running", "hold 2")
    device.until(lambda: device.serving.active == 1)
    for name in ("first", "second", "third"):
        client.ask(name, "count 1")
    error = client.wait_answer("third").lasts[0]["error"]
    assert (error["code"], error["type"]) == (429, "queue_full")
    assert error["retry_after_ms"] > 0
    device.call(device.workers.current.let_go)
    assert client.wait_answer("second").lasts[0]["finish_reason"] == "stop"


def test_a_burst_into_a_short_queue_is_told_to_wait_a_moment(make_device: MakeDevice, client: RawClient) -> None:
    """By the time that some are turned away there is room again; none is sent back into the crowd at once."""
    make_device(workers=FakeWorkers(slots=8), queue_limit=1).start(sealed())
    for number in range(30):
        client.send(f"q{number}", "count 1")
    ends = [client.wait_answer(f"q{number}").lasts[0] for number in range(30)]
    turned_away = [end["error"] for end in ends if "error" in end]
    assert turned_away
    assert {error["code"] for error in turned_away} == {429}
    assert min(error["retry_after_ms"] for error in turned_away) >= 100


def test_without_a_model_requests_are_turned_away(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start()
    client.ask("early", "count 1")
    error = client.wait_answer("early").lasts[0]["error"]
    assert (error["code"], error["type"]) == (503, "no_model")
    assert error["retry_after_ms"] > 0


def test_a_request_that_waited_for_nothing_is_run_when_it_comes_again(
    make_device: MakeDevice, client: RawClient
) -> None:
    """What says "try again" is no result: neither by the device that said it, nor after its restart."""
    workers = FakeWorkers()
    device = make_device(workers=workers).start(sealed())
    client.ask("patient", "wait 2")
    device.until(lambda: device.serving.active == 1)
    workers.failures = 1000
    device.call(workers.current.kill)
    error = client.wait_answer("patient").lasts[0]["error"]
    assert (error["code"], error["type"]) == (503, "engine_unavailable")
    assert error["retry_after_ms"] > 0
    control = f"edge/v1/d/{client.device}/control/{client.name}"
    client.answers["patient"] = Answer(0.0)
    client.publish(control, b'{"id": "patient", "op": "resume"}')
    assert client.wait_answer("patient").lasts[0]["error"] == error, "nothing else is known of it"
    client.ask("patient", "wait 2")
    assert client.wait_answer("patient").lasts[0]["error"]["type"] == "engine_unavailable"
    device.kill()
    again = make_device().start(sealed())
    client.ask("patient", "count 2")
    assert client.wait_answer("patient").lasts[0]["text"] == "0 1 ", "even another body: its id is free"
    client.ask("patient", "wait 2")
    assert client.wait_answer("patient").lasts[0]["error"]["code"] == 409, "now it has its result"
    assert len(again.workers.current.admitted) == 1


def test_while_the_agent_starts_requests_wait(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(settle=False)
    client.ask("early", "count 1")
    device.until(lambda: device.serving.queued == 1)
    device.run(device.serving.swap(sealed(), "drain"))
    assert client.wait_answer("early").lasts[0]["text"] == "0 "


def test_cancel_works_while_queued_and_while_running_and_for_own_requests_only(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device(workers=FakeWorkers(slots=1)).start(sealed())
    client.ask("running", "hold 2")
    client.ask("queued", "count 2")
    device.until(lambda: device.serving.active == 1 and device.serving.queued == 1)
    control = f"edge/v1/d/{client.device}/control/"
    client.publish(f"{control}stranger", json.dumps({"id": "queued", "op": "cancel"}).encode())
    client.publish(f"{control}{client.name}", b'{"id": "running", "op": "cancel"}')
    assert client.wait_answer("running").lasts[0]["finish_reason"] == "cancelled"
    assert client.wait_answer("queued").lasts[0]["finish_reason"] == "stop"
    client.ask("running2", "hold 2")
    client.ask("queued2", "count 2")
    client.publish(f"{control}{client.name}", b'{"id": "queued2", "op": "cancel"}')
    assert client.wait_answer("queued2").lasts[0]["finish_reason"] == "cancelled"


def test_deadline_ends_requests_that_wait_and_that_run(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=1)).start(sealed())
    client.ask("running", "hold 2", deadline_ms=1000)
    device.until(lambda: bool(device.workers.current.admitted))
    client.ask("waiting", "hold 2", deadline_ms=1)
    assert client.wait_answer("waiting").lasts[0]["finish_reason"] == "deadline"
    last = client.wait_answer("running").lasts[0]
    assert (last["finish_reason"], last["text"]) == ("deadline", "0 ")


def test_an_engine_is_told_how_long_a_request_may_take(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    day = 86_400.0
    for name, fields in {"day": {"deadline_ms": int(1000 * day)}, "ever": {}}.items():
        client.ask(name, "count 1", **fields)
        client.wait_answer(name)
    first, second = device.workers.current.admitted
    assert first.deadline_seconds is not None
    assert day - 3600 < first.deadline_seconds <= day, "what is left when it begins"
    assert second.deadline_seconds is None


def test_newer_request_supersedes_older_ones(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    client.ask("old", "hold 2", supersede_key="view")
    device.until(lambda: device.serving.active == 1)
    client.ask("new", "count 2", supersede_key="view")
    assert client.wait_answer("old").lasts[0]["finish_reason"] == "cancelled"
    assert client.wait_answer("new").lasts[0]["finish_reason"] == "stop"


def test_only_the_newest_of_those_that_wait_is_left(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=1)).start(sealed())
    client.ask("running", "hold 2")
    device.until(lambda: device.serving.active == 1)
    for number in range(5):
        client.ask(f"view{number}", "count 2", supersede_key="view")
    client.ask("another", "count 2", supersede_key="else")
    for number in range(4):
        assert client.wait_answer(f"view{number}").lasts[0]["finish_reason"] == "cancelled"
    device.call(device.workers.current.let_go)
    assert client.wait_answer("view4").lasts[0]["finish_reason"] == "stop"
    assert client.wait_answer("another").lasts[0]["finish_reason"] == "stop"
    assert len(device.workers.current.admitted) == 3


def test_what_the_engine_rejects_is_the_one_result(make_device: MakeDevice, client: RawClient) -> None:
    make_device().start(sealed())
    client.ask("long", "reject")
    error = client.wait_answer("long").lasts[0]
    assert (error["error"]["code"], error["error"]["field"]) == (400, "messages")
    client.ask("long", "reject")
    assert client.wait_answer("long").lasts == [error]


@pytest.mark.parametrize("mode", ["drain", "overlap"])
def test_swap_loses_and_doubles_nothing(make_device: MakeDevice, client: RawClient, mode: str) -> None:
    device = make_device(workers=FakeWorkers(slots=2), stream_interval_ms=0).start(sealed())
    for number in range(30):
        client.ask(f"r{number}", f"count {number + 1}")
        if number == 10:
            client.wait_answer("r0")
            report = device.run(device.serving.swap(sealed(version="2.0.0"), mode))  # type: ignore[arg-type]
    client.wait_until_fewer(1)
    assert all(len(answer.lasts) == 1 and "text" in answer.lasts[0] for answer in client.answers.values())
    assert client.answers["r29"].bundle == "toy@2.0.0"
    assert client.answers["r0"].bundle == "toy@1.0.0"
    assert report.mode == mode


def test_a_model_that_does_not_load_beside_the_old_one_is_loaded_in_its_place(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device(workers=FakeWorkers(slots=2)).start(sealed())
    for number in range(12):
        client.ask(f"r{number}", f"count {number + 1}")
    device.workers.failures = 1
    report = device.run(device.serving.swap(sealed(version="2.0.0"), "overlap"))
    client.ask("after", "count 1")
    client.wait_until_fewer(1)
    assert report.mode == "drain"
    assert all(len(answer.lasts) == 1 and "text" in answer.lasts[0] for answer in client.answers.values())
    assert client.answers["after"].bundle == "toy@2.0.0"


def test_a_load_beside_the_old_one_that_takes_too_long_is_not_tried_again_while_requests_wait(
    make_device: MakeDevice, client: RawClient
) -> None:
    from contract.errors import LoadTimedOut

    device = make_device().start(sealed())
    device.workers.failures, device.workers.failure = 2, LoadTimedOut("not loaded within 300 s")
    with pytest.raises(LoadTimedOut):
        device.run(device.serving.swap(sealed(version="2.0.0"), "overlap"))
    client.ask("still", "count 1")
    assert client.wait_answer("still").bundle == "toy@1.0.0"
    assert device.workers.failures == 1


@pytest.mark.parametrize(("mode", "failures"), [("drain", 1), ("overlap", 2)])
def test_swap_to_a_model_that_does_not_load_keeps_the_old_one(
    make_device: MakeDevice, client: RawClient, mode: SwapMode, failures: int
) -> None:
    from contract.errors import EngineFailed

    device = make_device().start(sealed())
    device.workers.failures = failures
    with pytest.raises(EngineFailed):
        device.run(device.serving.swap(sealed(version="2.0.0"), mode))
    client.ask("still", "count 1")
    assert client.wait_answer("still").bundle == "toy@1.0.0"


def test_the_last_answers_and_the_end_of_the_old_worker_are_no_evidence_on_the_new_one(
    make_device: MakeDevice, client: RawClient
) -> None:
    device = make_device(workers=FakeWorkers(slots=3), stream_interval_ms=0).start(sealed())
    for name in ("first", "second", "third"):
        client.ask(name, "hold 3", stream=name != "third")
        device.until(
            lambda name=name: any(request.key.id == name and request.frames.tokens for request in running(device))
        )  # type: ignore[misc]
    assert device.serving.counters().finished == 0
    old = device.workers.current
    device.run(device.serving.swap(sealed(version="2.0.0"), "overlap"))
    device.call(lambda: old.cancel(old.admitted[0].request))
    assert client.wait_answer("first").lasts[0]["finish_reason"] == "cancelled"
    device.call(old.kill)
    assert client.wait_answer("second").lasts[0]["error"]["type"] == "interrupted"
    device.until(lambda: bool(device.workers.current.admitted))
    seen = device.call(device.serving.counters)
    assert (seen.finished, seen.failed, seen.crashes, seen.speed) == (0, 0, 0, None)
    device.call(device.workers.current.let_go)
    assert client.wait_answer("third").bundle == "toy@2.0.0"
    device.until(lambda: device.serving.counters().finished == 1)
    seen = device.call(device.serving.counters)
    assert (seen.failed, seen.crashes) == (0, 0)
    assert seen.speed is not None


def running(device: Device) -> list[ActiveRequest]:
    return [request for replica in device.serving.replicas for request in replica.running.values()]


def test_restart_runs_what_was_accepted_and_closes_what_had_begun(make_device: MakeDevice, client: RawClient) -> None:
    first = make_device(workers=FakeWorkers(slots=2)).start(sealed())
    client.ask("streamed", "hold 3")
    client.ask("silent", "wait 3")
    while client.next_frame()[0] != "streamed":
        pass
    first.kill()
    second = make_device().start(sealed())
    error = client.wait_answer("streamed").lasts[0]
    assert (error["error"]["code"], error["error"]["type"], error["attempt"]) == (503, "interrupted", 2)
    second.until(lambda: bool(second.workers.current.admitted))
    second.call(second.workers.current.let_go)
    last = client.wait_answer("silent").lasts[0]
    assert (last["text"], last["attempt"]) == ("0 1 2 ", 2)


def test_answer_is_the_same_after_a_restart(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device().start(sealed())
    client.ask("kept", "count 3")
    before = client.wait_answer("kept").lasts[0]
    device.kill()
    make_device().start(sealed())
    client.ask("kept", "count 3")
    assert client.wait_answer("kept").lasts[0] == before


def test_who_waits_hears_where_and_for_how_long(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=1)).start(sealed())
    client.ask("running", "hold 2")
    device.until(lambda: device.serving.active == 1)
    client.ask("next", "count 1")
    client.ask("quiet", "count 1", stream=False)
    client.ask("third", "count 1")
    device.until(lambda: device.serving.queued == 3)
    device.run(device.result_store.flush())
    device.call(device.workers.current.let_go)
    news = client.wait_answer("next").frames[0]
    assert (news["s"], news["d"], news["n"], news["position"]) == (0, "", 0, 1)
    later = client.wait_answer("third").frames[0]
    assert later["position"] == 3
    assert later["estimate_ms"] > news["estimate_ms"] > 0
    assert client.wait_answer("quiet").frames == []


def test_nobody_is_more_urgent_than_others_unless_the_operator_says_so() -> None:
    granted = ServingSettings(client_max_priority={"alarm": 9})
    assert [granted.priority_of("anybody", asked) for asked in (0, 4, 9)] == [0, 4, 4]
    assert granted.priority_of("alarm", 9) == 9


def test_priority_is_capped_for_each_client(make_device: MakeDevice, client: RawClient, names: tuple[str, str]) -> None:
    capped = {names[1]: 2}
    device = make_device(workers=FakeWorkers(slots=1), client_max_priority=capped).start(sealed())
    client.ask("running", "hold 2")
    device.until(lambda: device.serving.active == 1)
    client.ask("pushy", "count 1", priority=9)
    other = f"edge/v1/d/{client.device}/generate/{client.name}x"
    client.publish(other, b'{"id": "modest", "prompt": "count 1", "priority": 3}')
    device.until(lambda: device.serving.queued == 2)
    device.run(device.result_store.flush())
    device.call(device.workers.current.let_go)
    client.wait_answer("pushy")
    assert [generation.client for generation in device.workers.current.admitted[1:]] == [names[1] + "x", names[1]]


def test_flood_of_one_client_leaves_room_for_another(make_device: MakeDevice, client: RawClient) -> None:
    device = make_device(workers=FakeWorkers(slots=1), queue_limit=64, client_queue_limit=32).start(sealed())
    client.ask("running", "hold 2")
    device.until(lambda: device.serving.active == 1)
    for number in range(1000):
        client.send(f"f{number}", "count 1")
    client.publish(
        f"edge/v1/d/{client.device}/generate/{client.name}x", b'{"id": "other", "prompt": "count 1", "stream": false}'
    )
    device.until(lambda: device.serving.queued == 33)
    device.call(device.workers.current.let_go)
    client.wait_until_fewer(1)
    refused = [answer for answer in client.answers.values() if "error" in answer.lasts[0]]
    assert len(refused) == 1000 - 32
    assert {answer.lasts[0]["error"]["code"] for answer in refused} == {429}
    others = [generation.client for generation in device.workers.current.admitted]
    assert others.index(client.name + "x") <= 2


def test_client_that_vanishes_costs_its_own_answer_only(
    make_device: MakeDevice, client: RawClient, shared_broker: Broker, names: tuple[str, str]
) -> None:
    device = make_device(workers=FakeWorkers(slots=1)).start(sealed())
    gone = RawClient(shared_broker.port, names[1] + "x", names[0])
    gone.ask("left", "hold 3")
    device.until(lambda: device.serving.active == 1)
    gone.close()
    client.ask("mine", "count 2")
    device.call(device.workers.current.let_go)
    assert client.wait_answer("mine").lasts[0]["text"] == "0 1 "
    back = RawClient(shared_broker.port, names[1] + "x", names[0])
    back.ask("left", "hold 3")
    assert back.wait_answer("left").lasts[0]["text"] == "0 1 2 "
    back.close()
    assert len(device.workers.current.admitted) == 2


def test_hash_storage_keeps_no_text_and_says_so_after_a_restart(
    make_device: MakeDevice, client: RawClient, tmp_path: Path
) -> None:
    device = make_device(store_results="hash", workers=FakeWorkers(slots=2)).start(sealed())
    client.ask("whispered", "count 3 hush-hush", stream=False)
    first = client.wait_answer("whispered").lasts[0]
    client.ask("whispered", "count 3 hush-hush", stream=False)
    assert client.wait_answer("whispered").lasts == [first]
    client.ask("cut", "wait 3 hush-hush")
    device.until(lambda: device.serving.active == 1)
    stored = [path for path in tmp_path.iterdir() if path.name.startswith("state.db")]
    assert stored
    for path in stored:
        assert b"hush-hush" not in path.read_bytes()
        assert b"0 1 2" not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
    device.kill()
    client.answers["cut"] = Answer(0.0)
    make_device(store_results="hash").start(sealed())
    assert client.wait_answer("cut").lasts[0]["error"]["type"] == "interrupted"
    client.ask("whispered", "count 3 hush-hush", stream=False)
    error = client.wait_answer("whispered").lasts[0]["error"]
    assert (error["code"], error["type"]) == (410, "expired")


@pytest.mark.parametrize("store_results", ["text", "hash"])
def test_an_answer_can_be_asked_for_as_long_as_promised(
    make_device: MakeDevice, client: RawClient, monkeypatch: pytest.MonkeyPatch, store_results: str
) -> None:
    """15 minutes, then 410 for a day, then the id is free; across restarts where text is kept, and without else."""
    monkeypatch.setattr(result_writer, "SWEEP_SECONDS", 0.0)
    now = 1e9
    clock = lambda: now  # noqa: E731
    device = make_device(clock=clock, store_results=store_results).start(sealed())

    def ask() -> dict[str, Any]:
        # What is too old goes with the commit before.
        device.run(device.result_store.flush())
        client.ask("old", "count 3")
        return client.wait_answer("old").lasts[0]

    first = ask()
    now += KEEP_SECONDS - 1
    assert ask() == first
    if store_results == "text":
        device.kill()
        device = make_device(clock=clock, store_results=store_results).start(sealed())
        assert ask() == first
    now += 1
    assert ask()["error"]["code"] == 410
    device.kill()
    device = make_device(clock=clock, store_results=store_results).start(sealed())
    assert ask()["error"]["code"] == 410
    now += KEEP_TOMBSTONES_SECONDS
    assert ask()["text"] == first["text"]
    assert device.workers.current.admitted, "its id is free: it was run anew"


YEAR = 365 * 86400.0


@pytest.mark.parametrize("store_results", ["text", "hash"])
def test_a_clock_that_is_set_forward_and_back_changes_nothing_for_what_waits_runs_and_is_kept(
    make_device: MakeDevice, client: RawClient, monkeypatch: pytest.MonkeyPatch, store_results: str
) -> None:
    monkeypatch.setattr(result_writer, "SWEEP_SECONDS", 0.0)
    wall = 1.8e9
    clock = steady_clock(lambda: wall)
    device = make_device(workers=FakeWorkers(slots=1), clock=clock, store_results=store_results).start(sealed())
    client.ask("kept", "count 3")
    kept = client.wait_answer("kept").lasts[0]
    client.ask("runs", "hold 3", deadline_ms=600_000)
    device.until(lambda: device.serving.active == 1)
    client.ask("waits", "count 3", deadline_ms=600_000)
    device.until(lambda: device.serving.queued == 1)
    for jump in (YEAR, -2 * YEAR, -55 * YEAR, 56 * YEAR):
        wall += jump
        for _ in range(2):
            device.run(device.result_store.flush())
        client.ask("kept", "count 3")
        assert client.wait_answer("kept").lasts == [kept]
        device.until(lambda: (device.serving.active, device.serving.queued) == (1, 1))
        client.ask(f"late{jump}".replace(".", "_"), "count 3", deadline_ms=1)
        assert client.wait_answer(f"late{jump}".replace(".", "_")).lasts[0]["finish_reason"] == "deadline"
    device.call(device.workers.current.let_go)
    for name in ("runs", "waits"):
        assert client.wait_answer(name).lasts[0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("jump", "reason"), [(-YEAR, "deadline"), (0.0, "stop"), (YEAR, "deadline")])
def test_a_deadline_is_never_longer_after_a_restart_than_it_was(
    make_device: MakeDevice, client: RawClient, jump: float, reason: str
) -> None:
    """Forward, it is over; back, what is left of it is all of it."""
    wall = 1.8e9
    first = make_device(workers=FakeWorkers(slots=1), clock=lambda: wall).start(sealed())
    client.ask("silent", "wait 3", deadline_ms=2_000 if jump < 0 else 600_000)
    first.until(lambda: bool(first.workers.current.admitted))
    first.kill()
    wall += jump
    second = make_device(workers=FakeWorkers(slots=1), clock=lambda: wall).start(sealed())
    if not jump:
        second.until(lambda: bool(second.workers.started) and bool(second.workers.current.admitted))
        second.call(second.workers.current.let_go)
    assert client.wait_answer("silent").lasts[0]["finish_reason"] == reason
