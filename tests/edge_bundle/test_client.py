"""Both clients against a real device and a broker that goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from agent.serving.settings import ServingSettings
from contract.errors import RequestInvalid, SourceUnavailable
from contract.mqtt.answers import LastFrame, Timing, Usage
from edge_bundle.async_client import AsyncClient
from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import BrokerSession
from edge_bundle.client import Client
from edge_bundle.completion import Completion, to_completion
from edge_bundle.replies import Answer, Found, Piece, Refused
from tests.agent.device import Device, sealed
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker

pytestmark = pytest.mark.broker

USER = [{"role": "user", "content": "count 4"}]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def device(broker: Broker, tmp_path: Path) -> Iterator[Device]:
    config = AgentConfig(
        device="box",
        state_dir=tmp_path,
        broker=BrokerSettings(host="127.0.0.1", port=broker.port),
        serving=ServingSettings(queue_limit=4, stop_seconds=0, stream_interval_ms=0),
    )
    made = Device(config, tmp_path / "state.db", FakeWorkers(slots=2)).start(sealed())
    yield made
    made.stop()


@pytest.fixture
def address(broker: Broker) -> BrokerAddress:
    return BrokerAddress("127.0.0.1", broker.port)


def test_answers_have_the_shape_of_openai(device: Device, address: BrokerAddress) -> None:
    with Client(address) as client:
        done = client.complete(device="box", messages=USER, max_tokens=3, timeout=120)
        assert done.choices[0].message.content == "0 1 2 "
        assert done.choices[0].message.role == "assistant"
        assert done.choices[0].finish_reason == "length"
        assert (done.object, done.model) == ("chat.completion", "toy@1.0.0")
        assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (2, 3, 5)
        *chunks, end = client.stream(device="box", messages=USER, timeout=120)
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "0 1 2 3 "
        assert end.choices[0].finish_reason == "stop"
        assert end.usage is not None
        assert end.usage.completion_tokens == 4


def test_errors_of_a_device_are_ours(device: Device, address: BrokerAddress) -> None:
    with Client(address) as client:
        with pytest.raises(RequestInvalid) as caught:
            client.complete(device="box", messages=USER, temperature=9, timeout=120)
        assert caught.value.field == "temperature"
        with pytest.raises(SourceUnavailable, match="is it online"):
            client.complete(device="nobody", messages=USER, timeout=0.2)
        device.run(device.serving.stop())
        with pytest.raises(SourceUnavailable, match="no model"):
            client.complete(device="box", messages=USER, timeout=120, retry=False)


def test_log_probabilities_have_the_shape_of_openai() -> None:
    top = [{"token": "a", "id": 5, "logprob": -0.1}, {"token": "b", "id": 6, "logprob": -2.0}]
    last = LastFrame(
        1, "a", "stop", Usage(1, 1, 2), Timing(queue_ms=0.0, total_ms=1.0), 1, "toy@1.0.0",
        [{"token": "a", "id": 5, "logprob": -0.1, "top_logprobs": top}],
    )  # fmt: skip
    found = to_completion(Answer(last, None, {})).choices[0].logprobs
    assert found is not None
    assert [(one.token, one.logprob) for one in found.content] == [("a", -0.1)]
    assert [one.token for one in found.content[0].top_logprobs] == ["a", "b"]


def test_two_programs_with_one_name_do_not_disturb_each_other(device: Device, address: BrokerAddress) -> None:
    with Client(address, name="me") as one, Client(address, name="me") as two:
        streams = [client.stream(device="box", prompt="hold 3", timeout=120) for client in (one, two)]
        assert [next(stream).choices[0].delta.content for stream in streams] == ["0 ", "0 "]
        device.call(device.workers.current.let_go)
        for stream in streams:
            assert "".join(chunk.choices[0].delta.content for chunk in stream) == "1 2 "
        assert [client._core._opened().reconnects for client in (one, two)] == [0, 0]


def test_tasks_may_ask_the_same_at_once(device: Device, address: BrokerAddress) -> None:
    async def scenario() -> list[str]:
        async with AsyncClient(address) as client:
            asked = (client.complete(device="box", id="same", messages=USER, timeout=120) for _ in range(3))
            return [done.choices[0].message.content for done in await asyncio.gather(*asked)]

    assert asyncio.run(scenario()) == ["0 1 2 3 "] * 3
    assert len(device.workers.current.admitted) == 1


def test_a_client_that_is_closed_ends_what_was_asked(device: Device, address: BrokerAddress) -> None:
    async def scenario() -> None:
        async with AsyncClient(address) as client:
            asked = asyncio.ensure_future(client.complete(device="box", prompt="hold 4", timeout=600))
            await asyncio.to_thread(device.until, lambda: device.serving.active == 1)
        with pytest.raises(SourceUnavailable, match="closed"):
            await asyncio.wait_for(asked, 120)

    asyncio.run(scenario())


def test_many_tasks_share_a_connection_and_wait_for_a_busy_device(device: Device, address: BrokerAddress) -> None:
    async def scenario() -> list[str]:
        async with AsyncClient(address) as client:
            asked = (client.complete(device="box", prompt=f"count {n}", timeout=120) for n in range(1, 21))
            return [done.choices[0].message.content for done in await asyncio.gather(*asked)]

    # More than the queue holds: some are turned away at first.
    assert asyncio.run(scenario()) == ["".join(f"{n} " for n in range(count)) for count in range(1, 21)]


def test_streams_of_tasks_and_a_refused_update(device: Device, address: BrokerAddress) -> None:
    async def scenario() -> list[Found]:
        async with AsyncClient(address) as client:
            found = []
            async for one in client.ask({"id": "tuned", "prompt": "hold 3"}, device="box", timeout=120):
                if not found:
                    await client.update("box", "tuned", temperature=99)
                found.append(one)
                if isinstance(one, Refused):
                    device.call(device.workers.current.let_go)
            text = ""
            async for chunk in client.stream(device="box", prompt="count 5", timeout=120):
                text += chunk.choices[0].delta.content
            assert text == "0 1 2 3 4 "
            return found

    found = asyncio.run(scenario())
    refused = [one for one in found if isinstance(one, Refused)]
    assert [(one.op, one.error.field) for one in refused] == [("update", "set.temperature")]
    assert isinstance(found[-1], Answer)
    assert found[-1].last is not None


def test_resume_tells_all_so_far(device: Device, address: BrokerAddress) -> None:
    """Both clients; another connection than the one that asked."""
    with Client(address, name="me") as asker:
        asked = asker.ask({"id": "long", "prompt": "hold 4"}, device="box", timeout=120)
        assert next(asked) == Piece("0 ", bundle="toy@1.0.0")
        asker.resume("box", "long")

        async def again() -> None:
            async with AsyncClient(address, name="other") as stranger:
                await stranger.resume("box", "long")
                await stranger.cancel("box", "long")

        asyncio.run(again())
        device.call(device.workers.current.let_go)
        answer = list(asked)[-1]
    assert isinstance(answer, Answer)
    assert answer.last is not None
    assert (answer.last.text, answer.last.finish_reason) == ("0 1 2 3 ", "stop"), "a stranger's cancel had no effect"


def test_a_broker_that_goes_away_costs_nothing(device: Device, address: BrokerAddress, broker: Broker) -> None:
    with Client(address) as client:
        chunks = client.stream(device="box", prompt="hold 4", timeout=120)
        text = next(chunks).choices[0].delta.content
        broker.kill()
        device.until(lambda: not device.gateway.connection.connected)
        broker.start()
        device.until(lambda: device.gateway.connection.subscribed)
        device.call(device.workers.current.let_go)
        for chunk in chunks:
            text = chunk.choices[0].delta.content if chunk.restart else text + chunk.choices[0].delta.content
    assert text == "0 1 2 3 "
    assert len(device.workers.current.admitted) == 1


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_broker_that_is_long_away_is_waited_for(
    device: Device, address: BrokerAddress, broker: Broker, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    """What was asked while it was away is asked when it is back."""
    asked = threading.Event()
    send = BrokerSession.send

    def watched(session: BrokerSession, topic: str, payload: bytes) -> None:
        send(session, topic, payload)
        if "/generate/" in topic:
            asked.set()

    monkeypatch.setattr(BrokerSession, "send", watched)

    def bring_back() -> None:
        assert asked.wait(120)
        broker.start()

    helper = threading.Thread(target=bring_back)
    helper.start()
    if flavour == "blocking":
        with Client(address) as client:
            broker.kill()
            done = client.complete(device="box", messages=USER, timeout=120)
    else:

        async def scenario() -> Completion:
            async with AsyncClient(address) as client:
                await asyncio.to_thread(broker.kill)
                return await client.complete(device="box", messages=USER, timeout=120)

        done = asyncio.run(scenario())
    helper.join()
    assert done.choices[0].message.content == "0 1 2 3 "
    assert len(device.workers.current.admitted) == 1


def test_asyncio_outlives_the_broker_too(device: Device, address: BrokerAddress, broker: Broker) -> None:
    async def scenario() -> str:
        async with AsyncClient(address) as client:
            asked = asyncio.ensure_future(client.complete(device="box", prompt="hold 4", timeout=120))
            await asyncio.to_thread(device.until, lambda: device.serving.active == 1)
            await asyncio.to_thread(broker.kill)
            device.call(device.workers.current.let_go)
            await asyncio.to_thread(broker.start)
            return (await asked).choices[0].message.content

    assert asyncio.run(scenario()) == "0 1 2 3 "
    assert threading.active_count() < 50
