"""Requests in the log: to be followed by their id, and never by what was said."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from agent.systemd.journal import JournalHandler, LineFormatter
from contract.mqtt.pictures import picture_url
from tests.agent.device import sealed
from tests.agent.serving.conftest import MakeDevice
from tests.e2e.raw_client import RawClient
from tests.seeing import png

pytestmark = pytest.mark.broker

SECRET = "xylophone"
"""Stands in prompts, in answers (fake workers repeat nothing, so in ids of stops, too) and nowhere else."""


class Kept(logging.Handler):
    """Everything that is logged, in both forms that the agent writes."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.text = ""
        self._journal = JournalHandler()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.text += LineFormatter().format(record) + "\n" + self._journal.datagram(record).decode() + "\n"

    def fields(self, message: str) -> list[dict[str, str]]:
        return [record.edge_fields for record in self.records if record.getMessage() == message]  # type: ignore[attr-defined]


@pytest.fixture
def log() -> Iterator[Kept]:
    logger = logging.getLogger("edge_agent")
    handler, level = Kept(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_request_can_be_followed_from_its_topic_to_the_worker(
    make_device: MakeDevice, client: RawClient, log: Kept
) -> None:
    device = make_device().start(sealed())
    client.ask("q1", f"count 3 {SECRET}")
    client.wait_answer("q1")
    (accepted,) = log.fields("request accepted")
    (began,) = log.fields("request given to a worker")
    (ended,) = log.fields("request ended")
    assert accepted["request"] == began["request"] == ended["request"] == "q1"
    assert accepted["client"] == ended["client"] == client.name
    assert began["number"] == ended["number"]
    assert began["worker"] == ended["worker"] == str(device.workers.started[0].pid)
    assert ended["outcome"] in ("stop", "length")
    assert ended["tokens"] == "3"
    assert ended["bundle"] == "toy@1.0.0"


def test_what_was_with_a_worker_that_crashed_is_named(make_device: MakeDevice, client: RawClient, log: Kept) -> None:
    device = make_device().start(sealed())
    client.ask("q1", f"wait {SECRET}")
    device.until(lambda: bool(device.workers.started[0].admitted))
    first = device.workers.started[0]
    device.call(first.kill)
    device.until(lambda: len(device.workers.started) == 2 and bool(device.workers.started[1].admitted))
    device.until(lambda: device.meter.restarts == 1)
    assert device.meter.crashes == 1
    (lost,) = log.fields("request was with a worker that ended")
    assert (lost["request"], lost["worker"]) == ("q1", str(first.pid))
    workers = [record.edge_fields for record in log.records if record.getMessage().startswith("the worker of")]  # type: ignore[attr-defined]
    assert workers[0]["worker"] == str(first.pid)
    assert SECRET not in log.text


def ask_everything(make_device: MakeDevice, client: RawClient, **serving: object) -> None:
    """Good, wrong, conflicting, cancelled and refused requests, all with the secret in them."""
    device = make_device(**serving).start(sealed())
    for name, text in (("good", "count 3"), ("refused", "reject"), ("held", "hold")):
        client.ask(name, f"{text} {SECRET}")
    client.wait_answer("good")
    client.wait_answer("refused")
    client.ask("good", f"{SECRET} {SECRET}")
    client.wait_answer("good")
    client.publish(f"edge/v1/d/{client.device}/generate/{client.name}", f'{{"prompt": "{SECRET}'.encode())
    client.ask("bad", SECRET, temperature=SECRET)
    client.ask("odd", SECRET, **{SECRET: 1})
    client.wait_answer("bad")
    client.wait_answer("odd")
    client.publish(f"edge/v1/d/{client.device}/control/{client.name}", b'{"id": "held", "op": "cancel"}')
    client.wait_answer("held")
    device.stop()


def test_nothing_that_people_wrote_is_in_the_log(make_device: MakeDevice, client: RawClient, log: Kept) -> None:
    ask_everything(make_device, client)
    assert len(log.fields("request ended")) == 3
    assert {found["error"] for found in log.fields("request refused")} >= {"invalid_request", "id_conflict"}
    assert SECRET not in log.text


def test_with_log_prompts_they_are_in_fields_of_their_own(
    make_device: MakeDevice, client: RawClient, log: Kept
) -> None:
    ask_everything(make_device, client, log_prompts=True)
    assert f"EDGE_PROMPT=user: count 3 {SECRET}" in log.text
    for record in log.records:
        assert SECRET not in record.getMessage()
        assert SECRET not in str(getattr(record, "edge_fields", ""))


def test_a_picture_is_one_word_in_the_log(make_device: MakeDevice, client: RawClient, log: Kept) -> None:
    device = make_device(log_prompts=True).start(sealed())
    url = picture_url(png(1, 2, 3))
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "count 2"}]
    client.ask("q1", "", messages=[{"role": "user", "content": parts}])
    client.wait_answer("q1")
    device.stop()
    assert "EDGE_PROMPT=user: [a picture]count 2" in log.text
    assert url[30:60] not in log.text


def test_a_worker_that_died_is_told_when_it_is_lost_and_when_it_is_back(
    make_device: MakeDevice, client: RawClient, log: Kept
) -> None:
    device = make_device().start(sealed())
    first = device.workers.started[-1]
    device.call(first.kill)
    device.until(lambda: bool(log.fields("the worker of toy@1.0.0 is back")))
    client.ask("q1", "count 1")
    client.wait_answer("q1")
    (lost,) = [record for record in log.records if " ended: " in record.getMessage()]
    assert lost.edge_fields["worker"] == str(first.pid)  # type: ignore[attr-defined]
    (back,) = log.fields("the worker of toy@1.0.0 is back")
    assert back["worker"] == str(device.workers.started[-1].pid) != str(first.pid)
    assert float(back["seconds"]) > 0
